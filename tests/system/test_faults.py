"""
What breaks in real life, broken for real: killed drivers, signals, a full disk, a server that is
down.
"""

import os
import shutil
import signal
import sqlite3

import pytest

from tests.support.shell import TINY, Shell, statuses_of, stop, wait_for

LONGER = TINY.replace("epochs: 3", "epochs: 12")


def shown_in_mlflow(folder):
    """
    Status and epochs of every run that MLflow has.
    """
    database = sqlite3.connect(folder / "mlflow.db")
    rows = database.execute(
        "SELECT status, count(DISTINCT step) FROM runs JOIN metrics USING (run_uuid) "
        "GROUP BY run_uuid"
    ).fetchall()
    database.close()
    return rows


def test_a_killed_driver_is_seen_by_status_and_leaves_no_process(tmp_path, data_root):
    """
    Ray's own agents look for their parent once in a while only, and end a little later.
    """
    import psutil

    shell = Shell(tmp_path, data_root, LONGER)
    driver = shell.start("run", "experiments.yaml", "--profile", "demo")
    try:
        wait_for(driver, r"epoch \d+/12")
        children = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in children if "Agent" not in child.name()]
        os.kill(driver.pid, signal.SIGKILL)
        status = shell("status", "experiments.yaml")
        _, alive = psutil.wait_procs(workers, timeout=30)
    finally:
        stop(driver)

    assert "lost (driver gone)" in status.stdout
    assert len(workers) >= 3
    assert alive == []


def test_a_run_that_diverges_is_named_with_exit_3_and_not_retried(tmp_path, data_root):
    yaml = LONGER.replace(
        "{id: 11, name: AOL-Conv, seed: 11,",
        "{id: 11, name: AOL-Conv, seed: 11, optimizer: {learning_rate: 1e30},",
    )
    shell = Shell(tmp_path, data_root, yaml)

    done = shell("run", "experiments.yaml", "--profile", "demo")
    plan = shell("plan", "experiments.yaml", "--profile", "demo")

    assert done.returncode == 3, done.stderr
    assert "run 11 diverged after 0 epochs: no finite loss" in done.stderr
    assert "Not finished: 11 (diverged)" in done.stderr
    assert statuses_of(tmp_path) == {0: "done", 11: "diverged"}
    assert "change its settings or --rerun 11" in plan.stdout


def test_a_full_disk_fails_the_run_with_its_reason(tmp_path, data_root):
    """
    Checkpoints go to a tiny file system that cannot hold them.
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


def test_mlflow_being_down_stops_nothing_and_is_said(tmp_path, data_root):
    shell = Shell(tmp_path, data_root)
    shell.environment |= {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }

    done = shell("run", "experiments.yaml", "--profile", "demo", "--only", "11")

    assert done.returncode == 0, done.stderr
    assert "MLflow at http://127.0.0.1:9" in done.stderr
    assert "`sync` sends it" in done.stderr
    assert statuses_of(tmp_path) == {11: "done"}

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        del shell.environment[name]
    again = shell("run", "experiments.yaml", "--profile", "demo", "--only", "11")
    third = shell("run", "experiments.yaml", "--profile", "demo", "--only", "11")

    assert "Nothing to do" in again.stderr
    assert "MLflow lacks 1 run: sending" in again.stderr
    assert shown_in_mlflow(tmp_path) == [("FINISHED", 3)]
    assert "MLflow lacks" not in third.stderr
