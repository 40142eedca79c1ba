"""
Hosts in network namespaces of this machine, with a Ray node each: own names, addresses, processes
and data, but one file system, which is their shared folder. Needs root and iproute2.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
NETWORK = "10.77.0"
BRIDGE = f"aol{os.getpid()}"
PORT = 6379
DRAINED_S = 5  # until a drained host may be stopped
# A Python whose torch finds the GPUs that exist in name only
PYTHON_WITH_GPUS = "#!/bin/sh\necho {gpus}\n"
IN_WORKERS = """
import sys

if any("default_worker" in part for part in sys.orig_argv):
    sys.executable = "{python}"
"""
START = 'hostname "$0"; {hide} exec "$@"'


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@cache
def available():
    """
    Return whether this process can make network namespaces with devices.
    """
    if os.geteuid() or not shutil.which("ip"):
        return False
    try:
        ip("netns", "add", BRIDGE)
    except subprocess.CalledProcessError:
        return False
    ip("netns", "delete", BRIDGE)
    return True


class Hosts:
    """
    A network of hosts. The first one has Ray's head, and the driver runs there.
    """

    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment
        self._names, self._stack = [], ExitStack()

    def __enter__(self):
        ip("link", "add", BRIDGE, "type", "bridge")
        self._stack.callback(ip, "link", "delete", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *_):
        self._stack.close()

    @property
    def address(self):
        return f"{NETWORK}.1:{PORT}"

    def add(self, name, cpus, gpus=0, *, sources=True, torch=None):
        """
        Start a host and its Ray node, without the project's sources or with another torch.
        """
        self._names.append(name)
        address, space = f"{NETWORK}.{len(self._names)}", space_of(name)
        ip("netns", "add", space)
        self._stack.callback(ip, "netns", "delete", space)
        self._stack.callback(self.kill, name)
        ip("link", "add", self._cable(name), "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", self._cable(name), "master", BRIDGE, "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", space, "link", "set", device, "up")
        temporary = f"/tmp/ray-{space}"  # short: Ray's sockets are in it
        self._stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        where = [f"--address={self.address}"]
        if len(self._names) == 1:
            where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        resources = [f"--num-cpus={cpus}", f"--num-gpus={gpus}", "--object-store-memory=80000000"]
        own = [f"--node-ip-address={address}", f"--temp-dir={temporary}", "--disable-usage-stats"]
        command = [*RAY, "start", *where, *resources, *own]
        started = self.start(
            name, *command, paths=self._make_paths(name, gpus, torch), sources=sources
        )
        out, _ = started.communicate(timeout=180)
        assert started.returncode == 0, out

    def start(self, name, *command, paths=(), sources=True):
        """
        Start a process on a host.
        """
        hide = "" if sources else "".join(f"mount --bind /dev/null {p};" for p in source_links())
        shell = ["sh", "-c", START.format(hide=hide), name, *map(str, command)]
        return subprocess.Popen(
            ["ip", "netns", "exec", space_of(name), "unshare", "--uts", "--mount", *shell],
            cwd=self.folder,
            env=self.environment
            | {
                "RAY_AUTH_MODE": "disabled",  # whatever token the home directory has
                "AOL_DATA": str(self.folder / f"data-{name}"),
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def kill(self, name):
        """
        Kill every process of a host.
        """
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = subprocess.run(
                ["ip", "netns", "pids", space_of(name)], check=True, capture_output=True, text=True
            ).stdout.split()
            for process in map(int, found):
                try:
                    os.kill(process, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            if not found:
                return
            time.sleep(0.1)
        raise AssertionError(f"processes of {name} do not end")

    def cut_off(self, name):
        ip("link", "set", self._cable(name), "down")

    def reconnect(self, name):
        ip("link", "set", self._cable(name), "up")

    def drain(self, name):
        """
        Ask Ray to give a host no more work, as before its preemption in some seconds.
        """
        drained = self.start(
            name,
            *(*RAY, "drain-node", f"--address={self.address}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"),
            f"--deadline-remaining-seconds={DRAINED_S}",
        )
        out, _ = drained.communicate(timeout=60)
        assert drained.returncode == 0, out

    def _cable(self, name):
        return f"{BRIDGE}-{self._names.index(name)}"

    def _make_paths(self, name, gpus, torch):
        """
        Return the folders of Python's path on a host that make its GPUs or its torch appear.
        """
        folder = self.folder / f"python-{name}"
        folder.mkdir()
        if gpus:
            python = folder / "python"
            python.write_text(PYTHON_WITH_GPUS.format(gpus=gpus))
            python.chmod(0o755)
            (folder / "sitecustomize.py").write_text(IN_WORKERS.format(python=python))
        if torch:
            information = folder / f"torch-{torch}.dist-info"
            information.mkdir()
            (information / "METADATA").write_text(f"Name: torch\nVersion: {torch}\n")
        return [folder]


def space_of(name):
    return f"{BRIDGE}-{name}"


def source_links():
    """
    Return the files by which the environment finds the sources of the project.
    """
    import torch

    return sorted(Path(torch.__file__).parents[1].glob("*aol_orchestrator*.pth"))
