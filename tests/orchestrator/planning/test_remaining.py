import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from orchestrator.analysis.report import make_report
from orchestrator.analysis.verdicts import Verdict
from orchestrator.cli import app
from orchestrator.errors import SpecError
from orchestrator.planning.remaining import find_remaining_work, gpu_paces
from orchestrator.planning.resources import cost
from orchestrator.spec.loader import SpecFile
from orchestrator.spec.schema import Prices
from orchestrator.store import Checkpoint, Epoch, Status, Store
from tests.support.reports import finish
from tests.support.shell import TINY
from tests.support.stores import ORIGIN


@pytest.fixture
def experiment(reported):
    """
    Two runs of three epochs in two tables each, at a price.
    """
    return replace(reported, prices=Prices(gpu_hour=2.0, tflops=1e-3))


@pytest.fixture
def needs(experiment, store):
    def find(table=None):
        return find_remaining_work(make_report(experiment, store), store, table)

    return find


def replicate(run, number):
    return run.model_copy(update={"train": replace(run.train, seed=run.replicate_seed(number))})


def numbers(need):
    return [one.replicate for one in need.trainings]


def test_with_nothing_trained_one_seed_of_each_run_would_do(needs, experiment):
    found = needs()
    hours = cost(experiment.runs[0]).flop / 1e9 / 3600

    assert [need.run.id for need in found.runs] == [0, 22]
    assert [numbers(need) for need in found.runs] == [[0], [0]]
    assert found.cells == 20
    assert found.runs[0].hours() == pytest.approx(hours)
    assert found.hours == pytest.approx(2 * hours)
    assert found.flop == pytest.approx(2 * cost(experiment.runs[0]).flop)
    assert not found.timed


def test_cells_that_are_settled_ask_for_nothing(needs, experiment, store):
    """
    Margins from -1 to 3 give cells far from the published ones.
    """
    finish(store, experiment.runs[0], 0.0)

    assert [need.run.id for need in needs().runs] == [22]


def test_one_table_is_asked_alone_and_a_selection_of_runs_too(experiment, store):
    report = make_report(experiment, store)
    selected = find_remaining_work(report, store, only={22})

    assert find_remaining_work(report, store, "one").cells == 10
    assert [need.run.id for need in selected.runs] == [22]
    assert selected.cells == 10
    assert find_remaining_work(report, store, "one", only={22}).cells == 5
    assert experiment.table("ABLATION").id == experiment.table("ablation").id == "ablation"
    with pytest.raises(SpecError, match="there is no such table; the tables are one, ablation"):
        experiment.table("two")


def measured(store, run, percent):
    store.queue([run])
    store.start(run, ORIGIN)
    values = dict.fromkeys(("accuracy", "cra_36", "cra_72", "cra_108", "cra_1"), percent / 100)
    store.record(run.key, run.train.epochs, values)
    store.finish(run.key, Status.DONE)


def test_an_undecided_cell_asks_for_further_replicates(experiment, store):
    """
    70.5 beside 70.0: two further seeds would show that they are within a point.
    """
    measured(store, experiment.runs[0], 70.5)
    report = make_report(experiment, store)
    (judged,) = [
        report.judged[cell]
        for cell in report.cells
        if (cell.run, cell.metric, cell.table) == (0, "accuracy", "one")
    ]
    need = find_remaining_work(report, store, "one").runs[0]

    assert judged.verdict is Verdict.UNDERPOWERED
    assert judged.further_seeds == 2
    assert numbers(need) == [1, 2]
    assert need.settled_by(2) == (judged,)
    assert need.settled_by(1) == ()
    assert need.levels == [2]


def test_a_selection_of_runs_is_told_what_the_whole_is_told(tmp_path):
    """
    A cell somewhat beyond its margin asks for the more seeds the more cells are judged with it.
    """
    path = tmp_path / "experiments.yaml"
    published = TINY.replace("[70.3, 62.9]", "[70.3, 72.0]").replace("[68.5, 60.2]", "[70, 70]")
    path.write_text(published, encoding="utf-8")
    store = Store(tmp_path / "results" / "store.db")
    for run, percent in zip(SpecFile(path).experiment("demo").runs, (72.0, 70.0), strict=True):
        measured(store, run, percent)
    store.close()

    def seeds(only=None):
        options = ["--profile", "demo", "--json", *(["--only", only] if only else [])]
        done = CliRunner().invoke(app, ["missing", str(path), *options])
        missing = json.loads(done.stdout)
        done = CliRunner().invoke(app, ["plan", str(path), "--budget", "1000gpuh", *options])
        budget = json.loads(done.stdout)
        asked = {one["cell"]: one["further_seeds"] for one in missing["cells"]}
        return asked["only/AOL-Small/Std Acc"], {
            one["run_id"]: one["replicates"] for one in budget["chosen"]
        }

    whole = seeds()

    assert whole == (3, {0: [1, 2, 3]})
    assert seeds("0") == whole


def test_a_run_in_training_takes_what_is_left_of_it(needs, experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    for epoch in (1, 2):
        store.record(run.key, epoch, {"accuracy": 0.5})
    store.add_checkpoint(run.key, Checkpoint(2, "/c/2"))
    first, second = needs().runs

    assert {judged.verdict for judged in first.cells} == {Verdict.PARTIAL}
    assert first.trainings[0].epochs == 1
    assert first.hours() == pytest.approx(second.hours() / 3)


@pytest.mark.parametrize("status", [Status.UNSOUND, Status.DIVERGED])
def test_a_seed_that_was_given_up_is_not_asked_for_again(needs, experiment, store, status):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    store.finish(run.key, status, error="x")

    assert numbers(needs().runs[0]) == [1]


def test_hours_are_those_of_epochs_that_a_gpu_took_lately(needs, experiment, store, make_run):
    """
    Other runs of the same network, images and batches count, those on CPUs do not.
    """
    timed = make_run(5, profile="other", loss=experiment.runs[0].train.loss)
    elsewhere = make_run(6, batch_size=10)
    for run, device, seconds in [
        (timed, "NVIDIA H200", [100.0, 36.0, 36.0, 36.0, 36.0, 36.0]),
        (elsewhere, "NVIDIA H200", [7.0]),
    ]:
        store.queue([run])
        store.start(run, ORIGIN)
        store.set_placement(run.key, "box", device, 0)
        for epoch, taken in enumerate(seconds, start=1):
            store.record(run.key, epoch, {"seconds": taken})
    found = needs()

    assert len(gpu_paces(store)) == 2
    assert found.timed
    assert found.runs[0].hours() == pytest.approx(3 * 36 / 3600)

    for device in ("CPU, 2 threads", "cpu"):
        store.set_placement(timed.key, "box", device, 0)
        assert not needs().timed


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_of_runs_of_a_kind_the_newest_epochs_are_taken(store, make_run, newest):
    """
    Whatever their IDs and seeds: here run 5 twice, and run 6.
    """
    runs = [make_run(5), replicate(make_run(5), 1), make_run(6)]
    for place, run in enumerate(runs):
        store.queue([run])
        store.start(run, ORIGIN)
        store.set_placement(run.key, "box", "NVIDIA H200", 0)
        at = f"202{6 if place == newest else 5}-01-01T00:00:00.000+00:00"
        store.record_epochs(run.key, [Epoch(1, {"seconds": 10.0 + place}, at)])

    assert list(gpu_paces(store).values()) == [10.0 + newest]


def test_a_share_of_a_gpu_costs_its_share(experiment, store):
    runs = tuple(
        run.model_copy(update={"resources": run.resources.model_copy(update={"gpus": 0.25})})
        for run in experiment.runs
    )
    whole = find_remaining_work(make_report(experiment, store), store).hours
    quarter = replace(experiment, runs=runs)

    assert find_remaining_work(make_report(quarter, store), store).hours == pytest.approx(whole / 4)
