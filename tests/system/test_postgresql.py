"""
Runs whose store is on a PostgreSQL server that restarts, or that another driver takes over.
"""

import os
import signal
from collections import Counter
from contextlib import closing

import pytest
from sqlalchemy import text

from orchestrator.store import Status, Store
from tests.support.shell import TINY, Shell, stop, wait_for

pytestmark = pytest.mark.slow

YAML = TINY.replace("epochs: 3", "epochs: 30")
ARGUMENTS = ("experiments.yaml", "--profile", "demo", "--only", "11")


@pytest.fixture(scope="module")
def schema(postgresql):
    with postgresql.schema() as url:
        yield url


@pytest.fixture(scope="module")
def restarted(tmp_path_factory, data_root, schema, postgresql):
    """
    Return a finished run during which the server restarted and a second driver was started.
    """
    shell = Shell(tmp_path_factory.mktemp("restarted"), data_root, YAML)
    shell.store = ("--store", schema)
    process = shell.start("run", *ARGUMENTS, *shell.store)
    try:
        wait_for(process, r"epoch \d+/30")
        postgresql.restart()
        shell.second = shell("run", *ARGUMENTS, *shell.store)
        shell.err = process.communicate(timeout=300)[1]
        shell.code = process.returncode
    finally:
        stop(process)
    return shell


def read_run(url):
    """
    Return the only run of a store, its epochs and the outcomes of its attempts.
    """
    with closing(Store(url)) as store:
        (run,) = store.runs()
        return run, store.metrics(run.key), [one.outcome for one in store.attempts(run.key)]


def test_a_run_is_complete_after_a_restart_of_the_server(restarted, schema):
    run, epochs, outcomes = read_run(schema)

    assert restarted.code == 0, restarted.err
    assert (run.status, outcomes) == (Status.DONE, ["done"])
    assert list(epochs) == list(range(1, 31))
    assert Counter(len(values) for values in epochs.values()).most_common(1)[0][1] == 30


def test_no_second_driver_is_let_in_after_a_restart_of_the_server(restarted):
    assert restarted.second.returncode == 1
    assert "another driver is writing to" in restarted.second.stderr
    assert restarted.second.stderr.count("\n") == 1


def test_sync_creates_a_lost_mlflow_database_from_a_store_on_a_server(restarted):
    (restarted.folder / "mlflow.db").unlink()
    sync = restarted("sync", "experiments.yaml", *restarted.store)

    assert sync.returncode == 0, sync.stderr
    assert "1 run is in MLflow" in sync.stdout


def test_merge_copies_a_run_from_a_server_and_back(restarted, schema, postgresql, tmp_path):
    """
    All epochs and the margins are the same after two copies.
    """
    shell = Shell(tmp_path, tmp_path, YAML)
    there = shell("merge", schema)
    with postgresql.schema() as empty:
        back = shell("merge", tmp_path / "results" / "store.db", "--store", empty)
        again = shell("merge", schema, "--store", empty)
        copied = read_run(empty)

    assert (there.returncode, back.returncode) == (0, 0), there.stderr + back.stderr
    assert copied[1:] == read_run(schema)[1:]
    assert "1 unchanged" in again.stdout


@pytest.fixture
def replaced(tmp_path, data_root, postgresql):
    """
    Return a run whose driver was stopped like a machine that hangs, until another driver had taken
    over its store, and that was then continued.
    """
    shell = Shell(tmp_path, data_root, YAML)
    with postgresql.schema() as url:
        shell.url, command = url, ("run", *ARGUMENTS, "--store", url)
        process = shell.start(*command)
        try:
            shell.err = wait_for(process, r"epoch \d+/30")
            os.kill(process.pid, signal.SIGSTOP)
            take_over(url)
            shell.before = read_run(url)
            os.kill(process.pid, signal.SIGCONT)
            shell.err += process.communicate(timeout=120)[1]
            shell.code, shell.after = process.returncode, read_run(url)
        finally:
            stop(process)
        shell.again = shell.process(*command)
        yield shell


def take_over(url):
    """
    Open the store as the next driver does, once the lock of the first one is lost.
    """
    with closing(Store(url)) as store, store.engine.begin() as connection:
        locks = "FROM pg_locks WHERE locktype = 'advisory'"
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {locks}"))
    with closing(Store(url, exclusive=True)) as store:
        store.recover()


def test_a_replaced_driver_stops_and_writes_nothing(replaced):
    *_, last = replaced.err.splitlines()

    assert replaced.code == 1, replaced.err
    assert "Stopping: another driver took over the store." in replaced.err
    assert last.startswith("Error: another driver took over ")
    assert "Traceback" not in replaced.err
    assert replaced.after == replaced.before
    assert replaced.before[0].status is Status.INTERRUPTED
    assert replaced.again.returncode == 0, replaced.again.stderr
    run, epochs, outcomes = read_run(replaced.url)
    assert (run.status, outcomes) == (Status.DONE, ["interrupted", "done"])
    assert list(epochs) == list(range(1, 31))
