"""
Ctrl-C and a scheduler's SIGTERM, sent to a real driver and its process group at every stage, and
the command that the driver prints.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from aol.data.datasets import verified_file
from orchestrator.signals import REPEAT_S, STOPPING, STOPPING_AT_ONCE
from tests.support.shell import TINY, Shell, epochs_of, statuses_of, stop, wait_for, workers_of

pytestmark = pytest.mark.slow

YAML = TINY.replace("epochs: 3", "epochs: 200")
RARELY_SAVED = YAML.replace("checkpoint_seconds: 0.2", "checkpoint_seconds: 1000")
ALWAYS_SAVED = YAML.replace("checkpoint_seconds: 0.2", "checkpoint_seconds: 0.001")
ARGUMENTS = ("run", "experiments.yaml", "--profile", "demo", "--only", "11")
AGAIN = "Stopped. The same command continues: "
RAW = re.compile(r"Traceback|\*\*\* SIG|raylet|GCS|core_worker|Exception ignored|\(pid=")
NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)


@pytest.fixture
def shell(tmp_path, data_root, empty_mlflow):
    shell = Shell(tmp_path / "stopped", data_root, RARELY_SAVED)
    shutil.copy(empty_mlflow, shell.folder / "mlflow.db")
    return shell


@contextmanager
def driver(shell):
    process = shell.start(*ARGUMENTS)
    try:
        yield process
    finally:
        stop(process)


def finish(process):
    """
    Return the standard error of a driver that ends after a signal; nothing of Ray remains.
    """
    children = psutil.Process(process.pid).children(recursive=True)
    _, err = process.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    return err


def assert_stopped(process, number, err):
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1].startswith(AGAIN)
    assert not RAW.search(err), err


@NUMBERS
def test_while_the_images_are_awaited(tmp_path, data_root, number):
    """
    Another process, here the test, is preparing them.
    """
    shell = Shell(tmp_path / "stopped", tmp_path / "data", RARELY_SAVED)
    file = verified_file("digits", tmp_path / "data")
    file.parent.mkdir(parents=True)
    with FileLock(file.with_suffix(".lock")), driver(shell) as process:
        wait_for(process, "not in the store")
        os.killpg(process.pid, number)
        err = finish(process)

    assert_stopped(process, number, err)
    assert "Starting Ray" not in err
    assert statuses_of(shell.folder) == {}


@NUMBERS
def test_while_ray_starts(shell, number):
    with driver(shell) as process:
        wait_for(process, "Starting Ray")
        os.killpg(process.pid, number)
        err = finish(process)

    assert_stopped(process, number, err)
    assert statuses_of(shell.folder) == {11: "interrupted"}


@NUMBERS
def test_while_a_run_trains(shell, number):
    """
    It saves after its epoch, and the printed command continues there.
    """
    with driver(shell) as process:
        wait_for(process, r"epoch \d+/200")
        os.killpg(process.pid, number)
        err = finish(process)

    assert_stopped(process, number, err)
    assert statuses_of(shell.folder) == {11: "interrupted"}
    (epochs,) = epochs_of(shell.folder).values()
    assert f"interrupted after epoch {max(epochs)}" in shell("plan", *ARGUMENTS[1:]).stdout
    continued = shlex.split(err.splitlines()[-1].removeprefix(AGAIN))
    assert continued[1:] == ["-m", "orchestrator", *ARGUMENTS]
    with driver(shell) as again:
        wait_for(again, f"continues after epoch {max(epochs)}")


@NUMBERS
def test_while_a_run_saves(shell, number):
    (shell.folder / "experiments.yaml").write_text(ALWAYS_SAVED, encoding="utf-8")
    with driver(shell) as process:
        wait_for(process, r"epoch \d+/200")
        saved = set(shell.folder.glob("results/ray/*/*/checkpoint_*"))
        while not set(shell.folder.glob("results/ray/*/*/checkpoint_*")) - saved:
            assert process.poll() is None
        os.killpg(process.pid, number)
        err = finish(process)

    assert_stopped(process, number, err)
    (epochs,) = epochs_of(shell.folder).values()
    assert f"interrupted after epoch {max(epochs)}" in shell("plan", *ARGUMENTS[1:]).stdout


@pytest.fixture
def frozen(shell):
    """
    Yield a driver whose worker stands still in an epoch.
    """
    with driver(shell) as process:
        wait_for(process, r"epoch \d+/200")
        workers = [psutil.Process(pid) for pid in workers_of(process)]
        for worker in workers:
            worker.suspend()
        yield process
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()


@NUMBERS
def test_a_second_signal_stops_at_once(shell, frozen, number):
    os.killpg(frozen.pid, number)
    seen = wait_for(frozen, re.escape(STOPPING))
    time.sleep(REPEAT_S)  # an earlier one counts as the same
    os.killpg(frozen.pid, number)
    seen += wait_for(frozen, re.escape(STOPPING_AT_ONCE))
    err = seen + finish(frozen)

    assert_stopped(frozen, number, err)
    assert statuses_of(shell.folder) == {11: "interrupted"}


def test_an_epoch_that_does_not_end_in_time_is_given_up(shell, frozen):
    os.killpg(frozen.pid, signal.SIGTERM)
    err = finish(frozen)

    assert_stopped(frozen, signal.SIGTERM, err)
    assert STOPPING_AT_ONCE not in err
    assert statuses_of(shell.folder) == {11: "interrupted"}


def test_the_command_timeout_stops_once(shell):
    """
    It signals the driver, and then the driver's process group.
    """
    process = subprocess.Popen(
        ["timeout", "1000", sys.executable, "-m", "orchestrator", *ARGUMENTS],
        cwd=shell.folder,
        env=shell.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_for(process, r"epoch \d+/200")
        process.terminate()
        err = finish(process)
    finally:
        stop(process)

    assert_stopped(process, signal.SIGTERM, err)
    assert STOPPING_AT_ONCE not in err
    (epochs,) = epochs_of(shell.folder).values()
    assert f"interrupted after epoch {max(epochs)}" in shell("plan", *ARGUMENTS[1:]).stdout


def test_in_the_first_second(shell):
    """
    The program has imported next to nothing when its handlers are there.
    """
    with driver(shell) as process:
        while not handles(process.pid, signal.SIGTERM):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGTERM)
        err = finish(process)

    assert_stopped(process, signal.SIGTERM, err)


def handles(pid, number):
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)[1]
    return int(caught, 16) >> (number - 1) & 1
