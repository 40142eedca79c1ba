import json
import os
import signal
import subprocess
import sys
from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from aol.cli.train import EXIT_CONTINUE, EXIT_FAILED, EXIT_USAGE, Deadline, main, select_runs
from aol.errors import CheckpointError
from aol.provenance import checkout
from aol.training.records import Outcome
from aol.training.run_folder import RunFolder
from aol.training.trainer import Trainer
from orchestrator.planning.plan import as_rows, make_plan
from orchestrator.spec.loader import SpecFile
from tests.support.mounts import read_only
from tests.support.shell import PROJECT, TINY

pytestmark = pytest.mark.usefixtures("two_layers", "one_thread")

CPU = torch.device("cpu")
ALWAYS, NEVER = lambda seconds: True, lambda seconds: False


@pytest.fixture
def plan(tmp_path):
    """
    Return a function that writes the plan of the tiny experiment with settings and returns its
    file.
    """

    def make(*settings):
        (tmp_path / "experiments.yaml").write_text(TINY, encoding="utf-8")
        experiment = SpecFile(tmp_path / "experiments.yaml").experiment("demo", settings)
        file = tmp_path / "plan.json"
        file.write_text(json.dumps(as_rows(make_plan(experiment, []))))
        return file

    return make


@pytest.fixture
def box(plan, tmp_path, data_root):
    """
    Return a function that calls the command as on a machine without the orchestrator.
    """

    def call(*arguments, settings=()):
        fixed = ["--config", plan(*settings), "--data", data_root, "--out", tmp_path / "out"]
        return main([*map(str, fixed), "--device", "cpu", *map(str, arguments)])

    return call


@pytest.fixture
def folders(tmp_path):
    return lambda: {path.name.split("-")[0]: path for path in (tmp_path / "out").iterdir()}


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def epochs(folder):
    return [line["epoch"] for line in lines(folder / "metrics.jsonl")]


def losses(folder):
    return [line["values"]["train_loss"] for line in lines(folder / "metrics.jsonl")]


def test_runs_are_trained_one_after_another_into_folders(box, folders):
    assert box("--run", "11,0") == 0

    assert set(folders()) == {"0", "11"}
    for folder in folders().values():
        assert epochs(folder) == [1, 2, 3]
        assert json.loads((folder / "end.json").read_text())["outcome"] == "done"
        assert len(np.fromfile(folder / "margins.f32", "<f4")) == 100
        assert not list(folder.glob("part-*"))


def test_an_attempt_records_machine_versions_commit_and_images(box, folders):
    box("--run", "0")
    (facts,) = lines(folders()["0"] / "attempts.jsonl")

    assert facts["packages"]["torch"] == torch.__version__
    assert (facts["commit"], facts["diff"]) == astuple(checkout())
    assert set(facts["fingerprints"]) == {"train", "test"}
    assert facts["host"]
    assert facts["from_epoch"] == 0


@pytest.mark.parametrize(("options", "graphed"), [((), True), (("--eager",), False)])
def test_steps_are_captured_as_a_graph_unless_eager(box, monkeypatch, options, graphed):
    seen = []

    def make(*arguments, cuda_graph, **keywords):
        seen.append(cuda_graph)
        return Trainer(*arguments, cuda_graph=cuda_graph, **keywords)

    monkeypatch.setattr("aol.training.trainer.Trainer", make)
    box("--run", "0", *options)

    assert seen == [graphed]


def test_the_estimated_time_of_an_epoch_is_the_longest_of_the_latest_five(
    plan, data_root, tmp_path, monkeypatch
):
    """
    The first epoch of a call takes longer and would stop a run too early.
    """
    (run,) = select_runs(plan("epochs=7"), [0])
    seconds = [100.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0]
    estimates = []

    class Timed(Trainer):
        def epochs(self):
            for metrics, taken in zip(super().epochs(), seconds, strict=True):
                yield replace(metrics, seconds=taken)

    monkeypatch.setattr("aol.training.trainer.Trainer", Timed)
    RunFolder(tmp_path / "folder").train(
        run,
        data_root=data_root,
        device=CPU,
        must_stop=lambda taken: bool(estimates.append(taken)),
        save_every_s=1e9,
        log=print,
    )

    assert estimates == [*[100.0] * 5, 3.0]


def test_a_finished_run_is_not_trained_again(box, folders):
    box("--run", "0")
    before = (folders()["0"] / "metrics.jsonl").stat().st_mtime_ns

    assert box("--run", "0") == 0
    assert (folders()["0"] / "metrics.jsonl").stat().st_mtime_ns == before


def test_without_time_no_run_is_started_and_the_exit_code_is_that_for_continuing(box, tmp_path):
    assert box("--until-seconds", "0") == EXIT_CONTINUE
    assert not (tmp_path / "out").exists()


def test_a_run_stopped_after_every_epoch_has_the_same_results(plan, data_root, tmp_path):
    run = select_runs(plan(), None)[0]
    straight, halting = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    straight.train(run, data_root=data_root, device=CPU, must_stop=NEVER, log=print)

    outcomes, states = [], []
    for _ in range(3):
        outcomes.append(
            halting.train(run, data_root=data_root, device=CPU, must_stop=ALWAYS, log=print)
        )
        states.append(len(halting.states()))

    assert states == [1, 2, 1]
    assert outcomes == [Outcome.STOPPED, Outcome.STOPPED, Outcome.DONE]
    assert losses(halting.path) == losses(straight.path)
    margins = [(folder.path / "margins.f32").read_bytes() for folder in (straight, halting)]
    assert margins[0] == margins[1]
    assert [path.name for path in halting.path.glob("*.sha256")] == ["state-3.pt.sha256"]
    attempts = lines(halting.path / "attempts.jsonl")
    assert [attempt["from_epoch"] for attempt in attempts] == [0, 1, 2]


def test_epochs_after_the_last_checkpoint_are_trained_again_and_torn_lines_dropped(
    plan, data_root, tmp_path
):
    run = select_runs(plan(), None)[0]
    folder = RunFolder(tmp_path / "run")
    folder.train(run, data_root=data_root, device=CPU, must_stop=ALWAYS, log=print)
    with folder.metrics_file.open("a") as file:
        file.write('{"epoch": 2, "values": {"train_loss": 7.0}}\n{"epoch": 3, "va')

    folder.train(run, data_root=data_root, device=CPU, must_stop=NEVER, log=print)

    assert epochs(folder.path) == [1, 2, 3]
    assert 7.0 not in losses(folder.path)


@pytest.mark.parametrize(
    "line", ["[1]", "1", '"epoch"', "null", "{}", '{"epoch": null}', '{"epoch": 1e999}', "{"]
)
def test_lines_of_metrics_without_an_epoch_count_as_cut_off(plan, data_root, tmp_path, line):
    run = select_runs(plan(), None)[0]
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.metrics_file.write_text(f"{line}\n", encoding="utf-8")

    folder.train(run, data_root=data_root, device=CPU, must_stop=ALWAYS, log=print)

    assert epochs(folder.path) == [1]


def test_a_damaged_checkpoint_is_skipped_and_it_is_an_error_if_all_are_damaged(
    plan, data_root, tmp_path
):
    run = select_runs(plan("epochs=4"), None)[0]
    folder = RunFolder(tmp_path / "run")
    for _ in range(2):
        folder.train(run, data_root=data_root, device=CPU, must_stop=ALWAYS, log=print)
    logged = []
    (folder.path / "state-2.pt").write_bytes(b"damaged")

    folder.train(run, data_root=data_root, device=CPU, must_stop=ALWAYS, log=logged.append)
    for file in folder.path.glob("state-*.pt"):
        file.write_bytes(b"damaged")

    damaged, continued, *_ = logged
    assert damaged.startswith("run 0: cannot continue from a checkpoint: ")
    assert str(folder.path / "state-2.pt") in damaged
    assert continued == "run 0: continues after epoch 1"
    with pytest.raises(CheckpointError, match="remove these files to train from the start"):
        folder.train(run, data_root=data_root, device=CPU, must_stop=NEVER, log=print)


def test_a_folder_of_another_run_is_refused(plan, data_root, tmp_path):
    first, second = select_runs(plan(), None)
    folder = RunFolder(tmp_path / "run")
    folder.train(first, data_root=data_root, device=CPU, must_stop=ALWAYS, log=print)

    with pytest.raises(ValueError, match="describes another run"):
        folder.train(second, data_root=data_root, device=CPU, must_stop=NEVER, log=print)


def test_a_diverged_run_ends_and_the_next_run_is_trained(box, folders):
    assert box(settings=("optimizer.learning_rate=1e30",)) == EXIT_FAILED

    for folder in folders().values():
        ended = json.loads((folder / "end.json").read_text())
        assert ended["outcome"] == "diverged"
        assert "no finite loss" in ended["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "7"], "there is no run 7; the runs are [0, 11]"),
        (["--config", "/nowhere.json"], "No such file"),
        (["--config", str(PROJECT / "pyproject.toml")], "is it the output of `plan --json`?"),
    ],
)
def test_usage_errors_are_one_line_with_exit_code_2(box, capsys, arguments, message):
    assert box(*arguments) == EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_source_of_images_is_exit_1(box, capsys, tmp_path):
    assert box("--data", tmp_path / "none", settings=("data.name=cifar100",)) == 1
    assert "no source has cifar100" in capsys.readouterr().err


def test_a_read_only_data_root_is_replaced_by_the_cache_and_a_line(
    box, capsys, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    with read_only(tmp_path / "data") as root:
        code = box("--run", "0", "--data", root)

    assert code == 0
    assert f"{root} is read-only and has no intact images of digits" in capsys.readouterr().out


def test_a_read_only_folder_of_results_is_one_line_with_exit_code_1(box, capsys, tmp_path):
    (tmp_path / "out").mkdir()
    with read_only(tmp_path / "out"):
        code = box("--run", "0")
    error = capsys.readouterr().err

    assert code == 1
    assert error.startswith("run 0: [Errno 30] Read-only file system: ")
    assert error.count("\n") == 1


def test_checkpoints_that_cannot_be_read_are_exit_1(box, capsys, folders):
    box("--run", "0")
    (folders()["0"] / "end.json").unlink()
    for file in folders()["0"].glob("state-*.pt"):
        file.write_bytes(b"damaged")
    capsys.readouterr()

    assert box("--run", "0") == 1
    assert "run 0: none of its checkpoints can be read" in capsys.readouterr().err


def test_a_folder_of_another_run_is_exit_2(box, capsys, folders):
    box("--run", "0")
    (folders()["0"] / "end.json").unlink()
    (folders()["0"] / "run.json").write_text("{}", encoding="utf-8")

    assert box("--run", "0") == EXIT_USAGE
    assert "describes another run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_saves_and_stops(plan, data_root, tmp_path, folders):
    """
    The process imports nothing of the orchestrator.
    """
    code = (
        "import sys, aol.cli.train as m\n"
        "code = m.main(sys.argv[1:])\n"
        "assert not any(name.split('.')[0] in ('orchestrator', 'ray', 'pydantic', 'sqlalchemy')\n"
        "               for name in sys.modules)\n"
        "sys.exit(code)"
    )
    arguments = ["--config", plan("epochs=500"), "--data", data_root, "--out", tmp_path / "out"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--device", "cpu"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stdout:
            if "epoch=2" in line:
                os.kill(process.pid, signal.SIGTERM)
                break
        process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 128 + signal.SIGTERM
    done = epochs(folders()["0"])
    assert [path.name for path in folders()["0"].glob("state-*.pt")] == [f"state-{done[-1]}.pt"]


def test_the_deadline_leaves_room_for_a_slow_epoch():
    deadline = Deadline(100.0)

    assert not deadline.must_stop(60.0)
    assert deadline.must_stop(70.0)
    assert not Deadline(None).must_stop(1e9)
