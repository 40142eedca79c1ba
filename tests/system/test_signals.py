"""
Ctrl-C and a scheduler's SIGTERM, sent to a real driver, and the command that it prints.
"""

import re
import shlex
import signal
import subprocess

import pytest

from tests.support.shell import TINY, Shell, epochs_of, statuses_of, stop, wait_for

pytestmark = pytest.mark.slow

YAML = TINY.replace("epochs: 3", "epochs: 30")
YAML = YAML.replace("checkpoint_seconds: 0.2", "checkpoint_seconds: 1000")
ARGUMENTS = ("run", "experiments.yaml", "--profile", "demo", "--only", "11")
NUMBERS = {"SIGINT": (signal.SIGINT, 130), "SIGTERM": (signal.SIGTERM, 143)}


@pytest.fixture(
    scope="module",
    params=[("SIGINT", "SIGTERM"), ("SIGTERM", "SIGINT")],
    ids="-".join,
)
def stopped(request, tmp_path_factory, data_root):
    """
    Return a run that received one signal while Ray started, another one during training, and was
    then continued with the printed command.
    """
    shell = Shell(tmp_path_factory.mktemp("stopped"), data_root, YAML)
    (first, first_code), (second, second_code) = (NUMBERS[name] for name in request.param)
    shell.starting = interrupted(shell, "Starting Ray", first)
    shell.states = [statuses_of(shell.folder)]
    shell.training = interrupted(shell, r"epoch \d+/30", second, "--rerun", "11", "--rerun=11")
    shell.states.append(statuses_of(shell.folder))
    shell.codes = (first_code, second_code)
    (shell.stopped_at,) = [max(epochs) for epochs in epochs_of(shell.folder).values()]
    shell.plan = shell("plan", *ARGUMENTS[1:])
    command = shlex.split(re.search(r"The same command continues: (.*)", shell.training.stderr)[1])
    shell.again = subprocess.run(
        command,
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return shell


def interrupted(shell, pattern, number, *more):
    """
    Return the finished process that received the signal after it printed the pattern.
    """
    process = shell.start(*ARGUMENTS, *more)
    try:
        wait_for(process, pattern)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        stop(process)
    return subprocess.CompletedProcess(ARGUMENTS, process.returncode, out, err)


def test_a_signal_while_ray_starts_prints_the_command_to_continue(stopped):
    assert stopped.starting.returncode == stopped.codes[0], stopped.starting.stderr
    assert "The same command continues" in stopped.starting.stderr
    assert "Traceback" not in stopped.starting.stderr
    assert stopped.states[0] == {11: "interrupted"}


def test_a_signal_during_training_saves_the_run(stopped):
    assert stopped.training.returncode == stopped.codes[1], stopped.training.stderr
    assert stopped.states[1] == {11: "interrupted"}
    assert stopped.stopped_at < 30
    assert f"interrupted after epoch {stopped.stopped_at}" in stopped.plan.stdout


def test_the_printed_command_continues_the_run(stopped):
    assert stopped.again.returncode == 0, stopped.again.stderr
    assert f"continues after epoch {stopped.stopped_at}" in stopped.again.stderr
    (epochs,) = epochs_of(stopped.folder).values()
    assert sorted(epochs) == list(range(1, 31))
