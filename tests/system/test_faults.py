"""
Real failures: a run that diverges, an unreachable server, a full disk, and folders that vanish or
become read-only.
"""

import os
import re
import shutil
import sqlite3

import pytest

from tests.support.mounts import read_only, small_disk
from tests.support.shell import (
    TINY,
    UNREACHABLE_MLFLOW,
    Shell,
    epochs_of,
    statuses_of,
    stop,
    wait_for,
)

pytestmark = pytest.mark.slow


def shown_in_mlflow(folder):
    """
    Return the status and the number of epochs of every run in MLflow.
    """
    database = sqlite3.connect(folder / "mlflow.db")
    rows = database.execute(
        "SELECT status, count(DISTINCT step) FROM runs LEFT JOIN metrics USING (run_uuid) "
        "WHERE run_uuid IN (SELECT run_uuid FROM tags WHERE key = 'run_id') "
        "GROUP BY run_uuid ORDER BY status"
    ).fetchall()
    database.close()
    return rows


@pytest.fixture(scope="module")
def troubled(tmp_path_factory, data_root):
    """
    Return a folder in which one of two runs diverged while MLflow was unreachable. Later calls
    reach it.
    """
    yaml = TINY.replace(
        "{id: 11, name: AOL-Conv, seed: 11,",
        "{id: 11, name: AOL-Conv, seed: 11, optimizer: {learning_rate: 1e30},",
    )
    shell = Shell(tmp_path_factory.mktemp("troubled"), data_root, yaml)
    arguments = ("run", "experiments.yaml", "--profile", "demo")
    shell.environment |= UNREACHABLE_MLFLOW
    shell.first = shell.process(*arguments)
    shell.plan = shell("plan", *arguments[1:])
    for name in UNREACHABLE_MLFLOW:
        del shell.environment[name]
    shell.second, shell.third = shell(*arguments), shell(*arguments)
    return shell


def test_a_diverged_run_is_reported_with_exit_code_3_and_not_retried(troubled):
    assert troubled.first.returncode == troubled.second.returncode == 3, troubled.first.stderr
    assert "run 11 diverged after 0 epochs: no finite loss" in troubled.first.stderr
    assert "Not finished: 11 (diverged)" in troubled.first.stderr
    assert statuses_of(troubled.folder) == {0: "done", 11: "diverged"}
    assert "change its settings or --rerun 11" in troubled.plan.stdout
    assert "Starting Ray" not in troubled.second.stderr


def test_an_unreachable_mlflow_is_reported_and_stops_no_run(troubled):
    assert "MLflow at http://127.0.0.1:9" in troubled.first.stderr
    assert "`sync` sends it" in troubled.first.stderr


def test_the_next_call_sends_missing_runs_to_mlflow_once(troubled):
    assert "Sending 2 runs that MLflow lacks" in troubled.second.stderr
    assert shown_in_mlflow(troubled.folder) == [("FAILED", 0), ("FINISHED", 3)]
    assert "that MLflow lacks" not in troubled.third.stderr


def test_too_little_disk_space_is_an_error_before_training(tmp_path, data_root):
    """
    Checkpoints would go to a tiny file system that cannot hold them.
    """
    small = tmp_path / "small"
    small.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or os.system(f"mount -t tmpfs -o size=200k tmpfs {small} 2>/dev/null"):
        pytest.skip("needs the right to mount a small file system")
    try:
        shell = Shell(tmp_path, data_root, TINY)
        planned = shell("run", "experiments.yaml", "--profile", "demo", "--storage", small / "ray")
    finally:
        os.system(f"umount -l {small}")

    assert planned.returncode == 2
    assert "MB are free; free some space or choose another place with --storage" in planned.stderr


@pytest.fixture
def small_folder(tmp_path):
    """
    Return a folder on a file system of 40 MB.
    """
    with small_disk(tmp_path / "small", "40m") as folder:
        yield folder


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass


def test_a_disk_that_fills_up_interrupts_the_run_and_it_continues_when_there_is_room(
    small_folder, data_root
):
    yaml = TINY.replace("epochs: 3", "epochs: 60")
    shell = Shell(small_folder, data_root, yaml)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--only", "0")
    process = shell.start(*arguments)
    try:
        shown = wait_for(process, r"epoch \d+/60")
        fill(small_folder)
        shown += process.communicate(timeout=300)[1]
    finally:
        stop(process)
    (small_folder / "filler").unlink()
    second = shell.process(*arguments)

    assert process.returncode == 1, shown
    assert "Traceback" not in shown
    assert "No space left on device" in shown or "disk is full" in shown
    assert second.returncode == 0, second.stderr
    (epochs,) = epochs_of(small_folder).values()
    assert sorted(epochs) == list(range(1, 61))


@pytest.fixture
def training(tmp_path, data_root):
    """
    Return a folder and the process that trains a run in it for a while.
    """
    shell = Shell(tmp_path / "project", data_root, TINY.replace("epochs: 3", "epochs: 40"))
    process = shell.start("run", "experiments.yaml", "--profile", "demo", "--only", "11")
    wait_for(process, r"epoch \d+/40")
    yield shell.folder, process
    stop(process)


def test_a_run_whose_results_are_removed_and_put_back_loses_nothing(tmp_path, training):
    folder, process = training
    (folder / "results").rename(tmp_path / "away")
    seen = wait_for(process, "The store cannot be written")
    shutil.rmtree(folder / "results", ignore_errors=True)
    (tmp_path / "away").rename(folder / "results")
    _, rest = process.communicate(timeout=300)

    assert "its file was removed or replaced; put it back" in seen
    assert process.returncode == 0, rest
    assert "Traceback" not in seen + rest
    assert statuses_of(folder) == {11: "done"}
    ((_, epochs),) = epochs_of(folder).items()
    assert sorted(epochs) == list(range(1, 41))


def test_a_run_whose_results_become_read_only_is_an_error_without_a_traceback(training):
    folder, process = training
    with read_only(folder / "results"):
        _, err = process.communicate(timeout=300)

    assert process.returncode == 1
    assert "Traceback" not in err
    assert re.search(r"^Error: .*/results/.* cannot be written: .*Read-only", err, re.MULTILINE)


def test_a_run_of_a_read_only_project_writes_to_other_results(tmp_path, data_root):
    shell = Shell(tmp_path / "project", data_root, TINY)
    with read_only(shell.folder):
        arguments = ("experiments.yaml", "--profile", "demo", "--results", tmp_path / "results")
        done = shell.process("run", *arguments, "--only", "0")
        plan, report = shell("plan", *arguments), shell("report", *arguments)

    assert done.returncode == plan.returncode == report.returncode == 0, done.stderr
    assert f"mlflow ui --backend-store-uri sqlite:///{tmp_path}/results/mlflow.db" in done.stderr
    assert (tmp_path / "results" / "demo" / "tables.md").exists()
