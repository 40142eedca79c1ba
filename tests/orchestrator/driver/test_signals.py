"""
Ctrl-C and a scheduler's SIGTERM, sent to a driver for real, and the command it prints then.
"""

import re
import shlex
import signal
import subprocess

import pytest

from tests.support.shell import TINY, Shell, epochs_of, statuses_of, stop, wait_for

LONGER = TINY.replace("epochs: 3", "epochs: 12")


@pytest.mark.parametrize(
    ("number", "code", "continued"), [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)]
)
def test_a_signal_saves_and_the_same_command_continues(
    tmp_path, data_root, number, code, continued
):
    yaml = LONGER.replace("checkpoint_seconds: 0.2", "checkpoint_seconds: 1000")
    shell = Shell(tmp_path, data_root, yaml)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--only", "11")
    process = shell.start(*arguments, "--rerun", "11", "--rerun=11")
    try:
        wait_for(process, r"epoch \d+/12")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        stop(process)
    assert process.returncode == code, err
    command = shlex.split(re.search(r"The same command continues: (.*)", err)[1])
    assert statuses_of(tmp_path) == {11: "interrupted"}
    (stopped_at,) = [max(epochs) for epochs in epochs_of(tmp_path).values()]
    assert stopped_at < 12

    plan = shell("plan", "experiments.yaml", "--profile", "demo", "--only", "11")
    assert f"interrupted after epoch {stopped_at}" in plan.stdout

    if not continued:
        return

    again = subprocess.run(
        command, cwd=tmp_path, env=shell.environment, capture_output=True, text=True, check=False
    )

    assert again.returncode == 0, again.stderr
    assert f"continues after epoch {stopped_at}" in again.stderr
    (epochs,) = epochs_of(tmp_path).values()
    assert sorted(epochs) == list(range(1, 13))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_ray_starts_says_how_to_go_on(tmp_path, data_root, number, code):
    shell = Shell(tmp_path, data_root)
    process = shell.start("run", "experiments.yaml", "--profile", "demo", "--only", "11")
    try:
        wait_for(process, "Starting Ray")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        stop(process)

    assert process.returncode == code, err
    assert "The same command continues" in err
    assert "Traceback" not in err
    assert statuses_of(tmp_path) == {11: "interrupted"}
