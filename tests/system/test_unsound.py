"""
The results of a wrong rescaling are excluded, from the worker to the exit code.
"""

from contextlib import contextmanager
from dataclasses import asdict

import pytest

from aol.layers.modules import AOLConv2d
from aol.ops.rescale import rescale_conv
from orchestrator.analysis.tables import fill_tables
from orchestrator.cli.console import ConsoleObserver
from orchestrator.cli.run import report_outcome
from orchestrator.driver.recorder import StoreRecorder
from orchestrator.driver.run import run_session
from orchestrator.driver.session import RunOptions, Session
from orchestrator.errors import ExitCode
from orchestrator.planning.plan import Action, make_plan
from orchestrator.provenance import Provenance
from orchestrator.scheduling.events import EpochDone, Saved, Started, finished_event, placed_event
from orchestrator.scheduling.worker import train_run
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Checkpoint, Status, Store
from tests.support.shell import TINY

pytestmark = pytest.mark.usefixtures("one_thread")


SHORT = TINY.replace("epochs: 3", "epochs: 1").replace("train_limit: 150", "train_limit: 50")


@contextmanager
def output_stays(path):
    yield


def train(run, store, data_root, folder):
    """
    Train a run from its first epoch to its end, without Ray.
    """
    recorder = StoreRecorder(store, {"digits": Provenance("abc", {}, "d")}, discard=print)
    store.queue([run])
    recorder(Started(run))

    def report(result):
        match result["kind"]:
            case "placed":
                recorder(placed_event(run, result))
            case "epoch":
                recorder(EpochDone(run, result["epoch"], result["values"]))
            case "saved":
                recorder(Saved(run, Checkpoint(result["epoch"], result["path"])))
            case kind:
                recorder(finished_event(run, kind, result["error"], result["path"]))

    job = {"key": run.key, "id": run.id, "train": asdict(run.train), "cpus": 1.0, "gpus": 0.0}
    job |= {"folder": str(folder / "ray" / run.key)}
    job |= {"data_root": str(data_root), "log": str(folder / "log"), "checkpoint_seconds": 1e3}
    train_run(job, report=report, stopping=lambda: False, states=[])


@pytest.fixture
def trained(tmp_path, data_root, monkeypatch):
    """
    The tiny experiment in a store: run 0 is sound, in run 11 the weights are 1% too large.
    """
    monkeypatch.setattr("orchestrator.scheduling.worker.redirect_output", output_stays)
    (tmp_path / "experiments.yaml").write_text(SHORT, encoding="utf-8")
    experiment = SpecFile(tmp_path / "experiments.yaml").experiment("demo")
    store = Store(tmp_path / "results" / "store.db")
    sound, unsound = experiment.runs
    train(sound, store, data_root, tmp_path)
    wrong = staticmethod(lambda weight: rescale_conv(weight) * 1.01)
    monkeypatch.setattr(AOLConv2d, "_rescale", wrong)
    train(unsound, store, data_root, tmp_path)
    yield experiment, store
    store.engine.dispose()


def test_results_of_a_wrong_rescaling_are_in_no_table(trained, capsys):
    experiment, store = trained
    sound, unsound = store.runs()
    first, second = fill_tables(experiment, store)[0].cells

    assert (sound.status, sound.error, sound.certificate["violations"]) == (Status.DONE, None, [])
    assert unsound.status is Status.UNSOUND
    assert unsound.error.startswith("layer 1 (AOLConv2d): its bound is 1.0")
    assert unsound.error.endswith("more)")
    assert len(unsound.certificate["violations"]) > 10
    assert store.margins(unsound.key) is not None
    assert all(cell.measured is not None for cell in first)
    assert all(cell.measured is None for cell in second)

    actions = {item.run.id: item.action for item in make_plan(experiment, store.runs())}
    again = {item.run.id: item.action for item in make_plan(experiment, store.runs(), [11])}
    assert actions == {0: Action.DONE, 11: Action.UNSOUND}
    assert again == {0: Action.DONE, 11: Action.NEW}

    with Session(RunOptions(spec=experiment.path, profile="demo"), ConsoleObserver()) as session:
        assert report_outcome(run_session(session), session) == ExitCode.UNFINISHED
    printed = capsys.readouterr().err
    assert "Nothing to do: 1 run is done, 1 unsound" in printed
    assert "Unsound, not in the tables: run 11, layer 1 (AOLConv2d): its bound is 1.0" in printed
    table = (experiment.path.parent / "results/demo/tables.md").read_text(encoding="utf-8")
    assert "Run 11 with seed 11 is left out, unsound: layer 1 (AOLConv2d): its bound" in table
