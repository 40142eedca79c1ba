"""
Runs on a cluster of hosts in network namespaces: lost, drained, late, cut off and unfit machines.
"""

import os
import re
import signal
import sqlite3
import sys
import time

import pytest

from aol.provenance import checkout
from tests.support import hosts as support
from tests.support.shell import PROJECT, TINY, Shell, epochs_of, statuses_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not support.available(),
        reason="network namespaces cannot be made here; test_cluster.py has nodes of one host",
    ),
]

YAML = TINY.replace("{cpus: 1}", "{cpus: 1, gpus: 0}").replace("epochs: 3", "epochs: 80")
ALL_EPOCHS = list(range(1, 81))


@pytest.fixture
def hosts(tmp_path, data_root):
    shell = Shell(tmp_path, data_root, YAML)
    with support.Hosts(tmp_path, shell.environment) as network:
        network.add("driver", 0)
        yield network


class Driver:
    """
    A `run` on the first host, with what it printed so far.
    """

    def __init__(self, hosts, *options):
        command = [sys.executable, "-m", "orchestrator", "run", "experiments.yaml"]
        given = ["--profile", "demo", "--address", hosts.address, *options]
        self.process = hosts.start("driver", *command, *given, paths=[PROJECT])
        self.seen = ""

    def wait_for(self, pattern, timeout=240):
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            line = self.process.stdout.readline()
            self.seen += line
            assert line, f"never saw {pattern!r} in:\n{self.seen}"
            assert time.monotonic() < deadline, self.seen
        return found

    def finish(self, timeout=400):
        try:
            out, _ = self.process.communicate(timeout=timeout)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.seen += out
        return self.process.returncode


def test_machines_with_other_versions_or_without_their_gpus_are_refused_by_name(hosts):
    hosts.add("other", 1, torch="1.0")
    hosts.add("fewer", 1, gpus=2)
    (hosts.folder / "python-fewer" / "python").write_text("#!/bin/sh\necho 1\n")
    driver = Driver(hosts)

    assert driver.finish() == 2, driver.seen
    assert "machine other: has torch 1.0, the driver" in driver.seen
    assert "machine fewer: Ray was started with 2 GPUs, but torch finds 1" in driver.seen
    assert "Traceback" not in driver.seen


def test_runs_survive_a_killed_and_a_drained_host_and_use_a_late_one(hosts):
    """
    The hosts have 2, 1 and 0 GPUs. One has no sources, and none has images.
    """
    hosts.add("two", 1, gpus=2)
    hosts.add("one", 1, gpus=1, sources=False)
    hosts.add("none", 1)
    commit = checkout().commit
    driver = Driver(hosts, "--seeds", "0..1")
    driver.wait_for(r"trains on one, ")
    lost = driver.wait_for(r"run \d+ .* trains on (two|none), ")[1]
    hosts.kill(lost)
    hosts.add("late", 1)
    driver.wait_for(r"another takes over")
    driver.wait_for(r"trains on late, ")
    hosts.drain("one")
    time.sleep(support.DRAINED_S)
    hosts.kill("one")

    assert driver.finish() == 0, driver.seen
    assert set(statuses_of(hosts.folder).values()) == {"done"}
    assert [sorted(epochs) for epochs in epochs_of(hosts.folder).values()] == [ALL_EPOCHS] * 4
    assert commits_of(hosts.folder) == {commit}


def commits_of(folder):
    """
    Return the commits that the workers reported.
    """
    database = sqlite3.connect(folder / "results" / "store.db")
    rows = database.execute("SELECT git_commit FROM attempts").fetchall()
    database.close()
    return {commit for (commit,) in rows}


def test_a_run_survives_that_its_host_is_cut_off_and_comes_back(hosts):
    hosts.add("two", 1, gpus=2)
    hosts.add("none", 1)
    driver = Driver(hosts, "--only", "11")
    lost = driver.wait_for(r"trains on (two|none), ")[1]
    driver.wait_for(r"epoch \d+/80")
    hosts.cut_off(lost)
    time.sleep(30)  # longer than Ray waits for a sign of life
    hosts.reconnect(lost)

    assert driver.finish() == 0, driver.seen
    assert statuses_of(hosts.folder) == {11: "done"}
    assert [sorted(epochs) for epochs in epochs_of(hosts.folder).values()] == [ALL_EPOCHS]
