"""
The demo of all fourteen runs, shortened: it survives what is killed, and on what it leaves every
command of the README and of the pages about commands is executed as it stands there.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shell import PROJECT, Shell, epochs_of, statuses_of, stop, wait_for, workers_of

PAGES = ("README.md", "docs/commands.md", "docs/real-data.md")
NEEDS_CIFAR = "--profile paper"
CIFAR = (Path(os.environ.get("AOL_DATA") or "/nowhere") / "cifar100.npz").exists()
MANY = "--seeds 0..4"  # seventy runs


def short(yaml):
    """
    The project's own file with a demo of four epochs on few images.
    """
    changed = yaml.replace(
        "set: {epochs: 10, batch_size: 100, model: {width: 0.125}, data: {augment: false}}",
        "set: {epochs: 4, model: {width: 0.125}, data: {augment: false, train_limit: 300}}",
    ).replace("checkpoint_seconds: 3", "checkpoint_seconds: 0.1")
    assert changed.count("train_limit: 300") == changed.count("checkpoint_seconds: 0.1") == 1
    return changed.replace("defaults:\n", "defaults:\n  resources: {cpus: 1}\n")


@pytest.fixture(scope="module")
def demo(tmp_path_factory, data_root):
    """
    A folder in which a worker of the demo was killed, then the driver, and the same command
    finished.
    """
    yaml = short((PROJECT / "experiments.yaml").read_text(encoding="utf-8"))
    shell = Shell(tmp_path_factory.mktemp("demo"), data_root, yaml)
    arguments = ("run", "experiments.yaml", "--profile", "demo")
    first = shell.start(*arguments)
    try:
        wait_for(first, r"epoch \d+/4")
        os.kill(workers_of(first)[0], signal.SIGKILL)
        wait_for(first, r"its worker was lost|done in")
        wait_for(first, r": done in")
        os.kill(first.pid, signal.SIGKILL)
    finally:
        stop(first)
    shell.interrupted = list(statuses_of(shell.folder).values())
    shell.second = shell(*arguments)
    return shell


def test_the_demo_survives_the_loss_of_a_worker_and_of_the_driver(demo):
    """
    Every run has every epoch with every metric, once.
    """
    assert 0 < demo.interrupted.count("done") < 14
    assert demo.second.returncode == 0, demo.second.stderr
    assert "14 done." in demo.second.stderr
    found = epochs_of(demo.folder)
    assert len(found) == 14
    for key, epochs in found.items():
        assert sorted(epochs) == [1, 2, 3, 4], key
        assert all(len(names) == len(set(names)) == 11 for names in epochs.values()), key


def documented_commands():
    """
    Every call of the program in the pages' shell blocks, once, continuations joined.
    """
    text = "\n".join((PROJECT / page).read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [line.partition("  #")[0].strip() for line in lines if "-m orchestrator" in line]
    return list(dict.fromkeys(calls))


def test_the_pages_show_every_command():
    commands = {shlex.split(line)[3] for line in documented_commands()}

    training = ("run", "plan", "missing", "validate", "data", "sync", "ingest", "merge")
    reading = ("report", "status", "compare", "cra", "query", "explain")
    assert commands == {*training, *reading, "export", "bundle", "verify"}


def train_without_the_orchestrator(shell, out):
    plan = shell("plan", "experiments.yaml", "--profile", "demo", "--set", "epochs=1", "--json")
    (shell.folder / "plan.json").write_text(plan.stdout)
    arguments = ["--config", "plan.json", "--run", "0", "--out", out, "--device", "cpu"]
    command = [sys.executable, "-m", "aol", *arguments]
    subprocess.run(command, cwd=shell.folder, env=shell.environment, check=True)


@pytest.mark.parametrize("line", documented_commands())
def test_a_documented_command_works(demo, line, monkeypatch):
    """
    As it stands, training included, but for the seventy replicates, which are planned only.
    Without CIFAR in AOL_DATA so are the four runs that need it, and `data` prepares the digits.
    """
    arguments = shlex.split(line)[3:]
    if arguments[0] == "run" and (MANY in line or (NEEDS_CIFAR in line and not CIFAR)):
        arguments.append("--dry-run")
    if arguments[0] == "data" and not CIFAR:
        arguments += ["--set", "data.name=digits"]
    if NEEDS_CIFAR in line and CIFAR:
        monkeypatch.setitem(demo.environment, "AOL_DATA", os.environ["AOL_DATA"])
    if arguments[0] == "ingest":
        train_without_the_orchestrator(demo, arguments[1])
    if arguments[0] == "merge":
        store = demo.folder / arguments[1]
        store.parent.mkdir(parents=True)
        shutil.copy(demo.folder / "results" / "store.db", store)
    if "--watch" in arguments:
        process = demo.start(*arguments)
        try:
            assert any("AOL-Large" in line for line in process.stdout)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
        assert process.returncode == 130
        return

    done = demo(*arguments)

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
