"""
Checkpoints on an S3 server: moto's, on this machine.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from urllib.request import Request, urlopen

import pytest

from tests.support.shell import TINY, Shell, epochs_of, stop

pytest.importorskip("moto", reason="moto is not installed")
pytestmark = pytest.mark.slow

ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}
ARGUMENTS = ("run", "experiments.yaml", "--profile", "demo", "--only", "11")


@contextmanager
def s3_server(folder):
    """
    The host and port of an S3 server.
    """
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with (folder / "moto.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ACCESS)
    try:
        yield wait_until(
            lambda: re.search(r"http://(127\.0\.0\.1:\d+)", (folder / "moto.log").read_text())
        )[1]
    finally:
        process.terminate()
        process.wait()


def wait_until(find, timeout=120):
    ends = time.monotonic() + timeout
    while not (found := find()):
        assert time.monotonic() < ends
        time.sleep(0.1)
    return found


def stored_checkpoints(folder):
    """
    The checkpoints of the only run in the store, if there is one yet.
    """
    file = folder / "results" / "store.db"
    if not file.exists():
        return []
    with closing(sqlite3.connect(file, timeout=30)) as database:
        try:
            rows = database.execute("SELECT checkpoints FROM runs").fetchall()
        except sqlite3.OperationalError:  # the tables do not exist yet
            return []
    return [item for (text,) in rows for item in json.loads(text)]


def objects(host):
    with urlopen(f"http://{host}/bucket?list-type=2") as answer:
        return re.findall(r"<Key>(.*?)</Key>", answer.read().decode())


@pytest.fixture(scope="module")
def continued(tmp_path_factory, data_root):
    """
    A run whose driver was killed after a checkpoint, and that the same command continued.
    """
    yaml = TINY.replace("epochs: 3", "epochs: 12")
    shell = Shell(tmp_path_factory.mktemp("s3"), data_root, yaml)
    shell.environment |= ACCESS
    with s3_server(shell.folder) as host:
        urlopen(Request(f"http://{host}/bucket", method="PUT")).close()
        query = f"scheme=http&region=us-east-1&endpoint_override={host}"
        arguments = (*ARGUMENTS, "--storage", f"s3://bucket/aol?{query}")
        first = shell.start(*arguments)
        try:
            shell.before = wait_until(lambda: stored_checkpoints(shell.folder))
            os.killpg(first.pid, signal.SIGKILL)
        finally:
            stop(first)
        shell.second = shell.process(*arguments)
        shell.objects, shell.query = objects(host), query
    return shell


def test_a_run_continues_from_a_checkpoint_on_s3(continued):
    assert continued.second.returncode == 0, continued.second.stderr
    (epoch,) = re.findall(r"continues after epoch (\d+)", continued.second.stderr)
    (epochs,) = epochs_of(continued.folder).values()

    assert int(epoch) >= continued.before[0]["epoch"] >= 1
    assert sorted(epochs) == list(range(1, 13))


def test_only_the_last_checkpoint_is_kept_on_s3_and_its_uri_has_the_endpoint(continued):
    (checkpoint,) = stored_checkpoints(continued.folder)
    states = [name for name in continued.objects if name.endswith("state.pt")]

    assert checkpoint["epoch"] == 12
    assert checkpoint["path"].startswith("s3://bucket/aol/")
    assert checkpoint["path"].endswith(f"?{continued.query}")
    assert [f"s3://bucket/{name}".rpartition("/")[0] for name in states] == [
        checkpoint["path"].partition("?")[0]
    ]
