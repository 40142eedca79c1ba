"""
The start of a cluster, and runs on an existing one: several Ray nodes on this machine.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import ray

from aol.provenance import checkout
from orchestrator.errors import ResourceError
from orchestrator.planning.resources import Cluster, Node
from orchestrator.scheduling.cluster import _packed_source, connect
from tests.support.ray_nodes import RayNodes
from tests.support.shell import TINY, Shell, epochs_of, statuses_of, stop, wait_for


@pytest.fixture
def shell(tmp_path, data_root):
    opened = Shell(tmp_path, data_root, TINY.replace("epochs: 3", "epochs: 15"))
    opened.environment["RAY_AUTH_MODE"] = "disabled"  # whatever token the home directory has
    return opened


@pytest.fixture
def machines(shell, request):
    """
    Start a head node without CPUs, and stop the cluster after the test.
    """
    more = getattr(request, "param", {})
    with RayNodes(shell.environment | more) as started:
        yield started


@pytest.mark.slow
def test_runs_survive_the_loss_of_a_machine(tmp_path, shell, machines):
    """
    The machine that trains is killed, and another takes its place.
    """
    machines.add(1)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--only", "11")
    driver = shell.start(*arguments, "--address", machines.address)
    try:
        seen = wait_for(driver, r"run 11 .*: epoch \d+/15", timeout=300)
        machines.kill()
        machines.add(1)
        _, err = driver.communicate(timeout=180)
    finally:
        stop(driver)

    assert "Starting Ray (1 machine, 1 CPU, 0 GPUs)" in seen
    assert "its worker was lost, another takes over" in seen + err
    assert driver.returncode == 0, err
    assert statuses_of(tmp_path) == {11: "done"}
    assert [sorted(epochs) for epochs in epochs_of(tmp_path).values()] == [list(range(1, 16))]
    assert not list((tmp_path / "results" / "ray").glob(".seen-*"))


@pytest.mark.slow
def test_no_signal_is_lost_while_ray_starts():
    """
    Every SIGTERM, from before the start to its end, reaches the handler of the program.
    """
    received, started = [], threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    sent = 0

    def send():
        nonlocal sent
        while not started.wait(0.01):
            seen = len(received)
            os.kill(os.getpid(), signal.SIGTERM)
            sent += 1
            while len(received) == seen and not started.wait(0.01):
                pass  # signals that wait at the same time are delivered as one

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with connect("local", Cluster((Node(1.0, 0.0),))):
            started.set()
            sender.join()
            assert sent > 10
            assert len(received) == sent
            assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        started.set()
        sender.join()  # the next signal would end this process
        signal.signal(signal.SIGTERM, before)


INTRUDER = """
import os, sys
from ray._raylet import GcsClient
address, folder = sys.argv[1:]
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    GcsClient(address).internal_kv_put(b"ActorClass:x", b"code", True, b"fun")
    print("cluster")
except Exception as error:
    print(type(error).__name__)
try:
    print(os.listdir(folder))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def own_cluster():
    """
    Yield the address, the folder and the token of a local cluster.
    """
    with connect("local", Cluster((Node(1.0, 0.0),))):
        context = ray.get_runtime_context()
        folder = Path(ray._private.worker._global_node.get_temp_dir_path())
        yield context.gcs_address, folder, os.environ["RAY_AUTH_TOKEN"]


def intrude(address, folder, token):
    """
    Return the result of another user's attempts to write to the cluster and to read its folder.
    """
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER, address, str(folder)],
        env={"RAY_AUTH_MODE": "token" if token else "disabled", "RAY_AUTH_TOKEN": token},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_gets_neither_into_the_cluster_nor_into_its_folder(own_cluster):
    """
    With the token the same attempt to write succeeds.
    """
    address, folder, token = own_cluster

    assert intrude(address, folder, "") == ["AuthenticationError", "PermissionError"]
    assert intrude(address, folder, secrets.token_hex(32)) == [
        "AuthenticationError",
        "PermissionError",
    ]
    assert intrude(address, folder, token) == ["cluster", "PermissionError"]


@pytest.mark.slow
def test_the_token_is_in_no_file_and_in_no_command_line(own_cluster):
    import psutil

    _, folder, token = own_cluster
    assert ray.get(ray.remote(num_cpus=0)(os.getenv).remote("RAY_AUTH_TOKEN")) == token
    children = psutil.Process().children(recursive=True)

    assert not any(token in part for child in children for part in child.cmdline())
    assert not any(
        token.encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file()
    )


def test_a_version_of_ray_without_tokens_is_an_error(monkeypatch):
    monkeypatch.delattr("ray._raylet.AuthenticationTokenLoader")
    message = (
        rf"Ray {re.escape(ray.__version__)} would let other users .* install ray\[tune\]>=2.52"
    )

    with (
        pytest.raises(ResourceError, match=message),
        connect("local", Cluster((Node(1.0, 0.0),))),
    ):
        pass


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.mark.slow
@pytest.mark.parametrize("machines", [TOKEN], indirect=True, ids=["token"])
def test_an_existing_cluster_needs_its_token(shell, machines, tmp_path):
    machines.add(1)
    arguments = ("plan", "experiments.yaml", "--profile", "demo", "--address", machines.address)
    refused = [shell.process(*arguments)]
    shell.environment["RAY_AUTH_MODE"] = "token"
    refused.append(shell.process(*arguments))
    file = tmp_path / "token"
    shell.environment["RAY_AUTH_TOKEN_PATH"] = str(file)
    file.write_text(secrets.token_hex(32), encoding="ascii")
    refused.append(shell.process(*arguments))
    file.write_text(TOKEN["RAY_AUTH_TOKEN"], encoding="ascii")
    accepted = shell.process(*arguments)

    for done in refused:
        assert done.returncode == 2, done.stderr
        assert f"the Ray cluster at {machines.address} requires its token" in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert accepted.returncode == 0, accepted.stderr


def test_packages_sent_to_a_cluster_have_the_commit_of_the_driver():
    """
    They are imported from copies outside git, as a worker of another machine does.
    """
    code = "from aol.provenance import checkout; import orchestrator; print(checkout().as_json())"
    with _packed_source() as packages:
        path = os.pathsep.join({str(Path(package).parent) for package in packages})
        command = [sys.executable, "-c", code]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd="/", env={"PYTHONPATH": path}
        )

    assert done.stdout.strip() == checkout().as_json()
    assert json.loads(done.stdout)["commit"]
