"""
A short demo of all fourteen runs, which continues after killed processes. Every command of the
README and of the pages about commands is called on its results.
"""

import os
import re
import shlex
import shutil
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from aol.cli.train import main as train
from tests.support.figures import sketched
from tests.support.shell import PROJECT, Shell, epochs_of, statuses_of, stop, wait_for, workers_of

PAGES = ("README.md", "docs/commands.md", "docs/real-data.md")
NEEDS_CIFAR = ("--profile paper", "--profile laptop")
CIFAR = (Path(os.environ.get("AOL_DATA") or "/nowhere") / "cifar100.npz").exists()
MANY = "--seeds 0-4"  # seventy runs


def short(yaml):
    """
    Return the project's own file with a demo of four epochs on few images.
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
    Return a folder in which a worker of the demo was killed, then the driver, and then the same
    command finished.
    """
    import psutil

    yaml = short((PROJECT / "experiments.yaml").read_text(encoding="utf-8"))
    shell = Shell(tmp_path_factory.mktemp("demo"), data_root, yaml)
    arguments = ("run", "experiments.yaml", "--profile", "demo")
    first = shell.start(*arguments)
    try:
        wait_for(first, r"epoch \d+/4")
        os.kill(workers_of(first)[0], signal.SIGKILL)
        wait_for(first, r"its worker was lost")
        wait_for(first, r": done in")
        children = psutil.Process(first.pid).children(recursive=True)
        shell.children = [child for child in children if "Agent" not in child.name()]
        first.kill()
        first.wait()
        shell.interrupted = list(statuses_of(shell.folder).values())
        shell.status = shell("status", "experiments.yaml")
        _, shell.alive = psutil.wait_procs(shell.children, timeout=60)
    finally:
        stop(first)
    shell.second = shell.process(*arguments)
    return shell


@pytest.mark.slow
def test_status_shows_a_killed_driver_and_no_process_remains(demo):
    """
    Ray's own agents rarely check for their parent and end a little later.
    """
    assert "lost (driver gone)" in demo.status.stdout
    assert len(demo.children) >= 3
    assert demo.alive == []


@pytest.mark.slow
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
    Return every call of the program in the pages' shell blocks, once, with continuations joined.
    """
    text = "\n".join((PROJECT / page).read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    calls = [line.partition("  #")[0].strip() for line in lines if "-m orchestrator" in line]
    return list(dict.fromkeys(calls))


def test_the_pages_show_how_to_train_replicates():
    assert any(MANY in line for line in documented_commands())
    assert not any(MANY in line for line in TRAINING)


def test_the_pages_show_every_command():
    commands = {shlex.split(line)[3] for line in documented_commands()}

    training = ("run", "plan", "missing", "validate", "data", "sync", "ingest", "merge")
    reading = ("report", "status", "compare", "cra", "query", "explain")
    assert commands == {*training, *reading, "export", "bundle", "verify"}


def train_without_the_orchestrator(shell, out):
    plan = shell("plan", "experiments.yaml", "--profile", "demo", "--set", "epochs=1", "--json")
    (shell.folder / "plan.json").write_text(plan.stdout)
    arguments = ["--config", shell.folder / "plan.json", "--run", "0", "--out", shell.folder / out]
    arguments += ["--data", shell.environment["AOL_DATA"], "--device", "cpu"]
    assert train([*map(str, arguments)]) == 0


def interrupt(seconds):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("line", documented_commands())
def test_a_documented_command_works(demo, line, monkeypatch):
    """
    Commands are unchanged, but `run` is only planned, and without CIFAR in AOL_DATA `data` prepares
    the digits.
    """
    command, *arguments = shlex.split(line)[3:]
    if command == "run":
        arguments.append("--dry-run")
    if command == "data" and not CIFAR:
        arguments += ["--set", "data.name=digits"]
    if any(profile in line for profile in NEEDS_CIFAR) and CIFAR:
        monkeypatch.setitem(demo.environment, "AOL_DATA", os.environ["AOL_DATA"])
    if command == "ingest":
        train_without_the_orchestrator(demo, arguments[0])
    if command == "merge":
        store = demo.folder / arguments[0]
        store.parent.mkdir(parents=True)
        shutil.copy(demo.folder / "results" / "store.db", store)
    if "--watch" in arguments:
        monkeypatch.setattr("orchestrator.cli.status.time.sleep", interrupt)

    with nullcontext() if "--figures" in arguments else sketched():
        done = demo(command, *arguments)

    assert done.returncode == (130 if "--watch" in arguments else 0), done.stderr
    assert "Traceback" not in done.stderr
    if "--watch" in arguments:
        assert "AOL-Large" in done.stdout


TRAINING = [
    line
    for line in documented_commands()
    if shlex.split(line)[3] == "run" and not any(part in line for part in (MANY, *NEEDS_CIFAR))
]


@pytest.mark.slow
@pytest.mark.parametrize("line", TRAINING)
def test_a_training_command_of_the_readme_works(demo, line):
    """
    Commands are unchanged; left out are the seventy replicates and what takes hours.
    """
    done = demo.process(*shlex.split(line)[3:])

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
