"""
The start of a cluster, and runs on an existing one: several Ray nodes on this machine.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aol.provenance import checkout
from orchestrator.planning.resources import Cluster, Node
from orchestrator.scheduling.cluster import (
    _packed_source,
    connect,
    find_other_versions,
    machine_versions,
)
from tests.support.ray_nodes import RayNodes
from tests.support.shell import TINY, Shell, epochs_of, statuses_of, stop, wait_for


@pytest.fixture
def shell(tmp_path, data_root):
    opened = Shell(tmp_path, data_root, TINY.replace("epochs: 3", "epochs: 15"))
    opened.environment["RAY_AUTH_MODE"] = "disabled"  # whatever token the home directory has
    return opened


@pytest.fixture
def machines(shell):
    """
    Start a head node without CPUs, and stop the cluster after the test.
    """
    with RayNodes(shell.environment) as started:
        yield started


def test_another_version_of_a_machine_is_a_problem_of_it():
    wanted = machine_versions()

    assert set(wanted) == {"python", "torch", "ray"}
    assert find_other_versions(wanted) == []
    (problem, missing) = find_other_versions(wanted | {"torch": "1.0", "absent": "2"})
    assert problem.startswith(f"has torch {wanted['torch']}, the driver 1.0; install the driver's")
    assert missing.startswith("has no absent, the driver 2; install it")


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
