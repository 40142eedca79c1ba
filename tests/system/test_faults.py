"""
Real failures: a run that diverges, an unreachable server and a full disk.
"""

import os
import shutil
import sqlite3

import pytest

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
def small_disk(tmp_path):
    """
    Return a folder on a file system of 40 MB.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or os.system(f"mount -t tmpfs -o size=40m tmpfs {folder} 2>/dev/null"):
        pytest.skip("needs the right to mount a small file system")
    yield folder
    os.system(f"umount -l {folder}")


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass


def test_a_disk_that_fills_up_interrupts_the_run_and_it_continues_when_there_is_room(
    small_disk, data_root
):
    yaml = TINY.replace("epochs: 3", "epochs: 60")
    shell = Shell(small_disk, data_root, yaml)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--only", "0")
    process = shell.start(*arguments)
    try:
        shown = wait_for(process, r"epoch \d+/60")
        fill(small_disk)
        shown += process.communicate(timeout=300)[1]
    finally:
        stop(process)
    (small_disk / "filler").unlink()
    second = shell.process(*arguments)

    assert process.returncode == 1, shown
    assert "Traceback" not in shown
    assert "No space left on device" in shown or "disk is full" in shown
    assert second.returncode == 0, second.stderr
    (epochs,) = epochs_of(small_disk).values()
    assert sorted(epochs) == list(range(1, 61))
