import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from orchestrator.analysis.report import make_report
from orchestrator.analysis.verdicts import Verdict
from orchestrator.cli import app
from orchestrator.errors import SpecError
from orchestrator.planning.resources import cost
from orchestrator.planning.unresolved import epoch_seconds, find_remaining_work
from orchestrator.spec.loader import SpecFile
from orchestrator.spec.schema import Prices
from orchestrator.store import Checkpoint, Epoch, Status, Store
from tests.support.reports import finish, replicate_of
from tests.support.shell import TINY
from tests.support.stores import ORIGIN, recorded_statements


@pytest.fixture
def experiment(reported):
    """
    Return two runs of three epochs in two tables each, with a price.
    """
    return replace(reported, prices=Prices(gpu_hour=2.0, tflops=1e-3))


@pytest.fixture
def remaining(experiment, store):
    """
    Return a function that finds the remaining work, with the store as it is then.
    """

    def find(table=None):
        return find_remaining_work(make_report(experiment, store), store, table)

    return find


def replicates(needs):
    return [training.replicate for training in needs.trainings]


def test_an_empty_store_needs_one_seed_of_each_run(remaining, experiment):
    found = remaining()
    hours = cost(experiment.runs[0]).flop / 1e9 / 3600

    assert [need.run.id for need in found.runs] == [0, 22]
    assert [replicates(need) for need in found.runs] == [[0], [0]]
    assert found.cells == 20
    assert found.runs[0].hours() == pytest.approx(hours)
    assert found.hours == pytest.approx(2 * hours)
    assert found.flop == pytest.approx(2 * cost(experiment.runs[0]).flop)
    assert not found.timed


def test_resolved_cells_need_nothing(remaining, experiment, store):
    """
    The margins from -1 to 3 give values far from the published ones.
    """
    finish(store, experiment.runs[0], 0.0)

    assert [need.run.id for need in remaining().runs] == [22]


def test_the_work_can_be_limited_to_a_table_and_to_runs(experiment, store):
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


def test_an_underpowered_cell_needs_further_replicates(experiment, store):
    """
    Two further seeds would show that 70.5 and 70.0 differ by less than a percentage point.
    """
    measured(store, experiment.runs[0], 70.5)
    report = make_report(experiment, store)
    (judged,) = [
        report.verdicts[cell]
        for cell in report.cells
        if (cell.run, cell.metric, cell.table) == (0, "accuracy", "one")
    ]
    need = find_remaining_work(report, store, "one").runs[0]

    assert judged.verdict is Verdict.UNDERPOWERED
    assert judged.further_seeds == 2
    assert replicates(need) == [1, 2]
    assert need.resolved_by(2) == (judged,)
    assert need.resolved_by(1) == ()
    assert need.seed_counts == [2]


def test_selecting_runs_does_not_change_their_further_seeds(tmp_path):
    """
    A cell just beyond its margin needs more seeds if more cells are judged together.
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
        further = {one["cell"]: one["further_seeds"] for one in missing["cells"]}
        return further["only/AOL-Small/Std Acc"], {
            one["run_id"]: one["replicates"] for one in budget["chosen"]
        }

    whole = seeds()

    assert whole == (3, {0: [1, 2, 3]})
    assert seeds("0") == whole


def test_a_run_in_training_needs_its_remaining_epochs(remaining, experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    for epoch in (1, 2):
        store.record(run.key, epoch, {"accuracy": 0.5})
    store.add_checkpoint(run.key, Checkpoint(2, "/c/2"))
    first, second = remaining().runs

    assert {judged.verdict for judged in first.cells} == {Verdict.PARTIAL}
    assert first.trainings[0].epochs == 1
    assert first.hours() == pytest.approx(second.hours() / 3)


@pytest.mark.parametrize("status", [Status.UNSOUND, Status.DIVERGED])
def test_further_seeds_do_not_replace_a_diverged_or_unsound_one(
    remaining, experiment, store, status
):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    store.finish(run.key, status, error="x")

    assert replicates(remaining().runs[0]) == []


def test_hours_are_estimated_from_recent_epochs_on_gpus(remaining, experiment, store, make_run):
    """
    Runs with the same network, images and batches count, runs on CPUs do not.
    """
    timed = make_run(5, profile="other", epochs=9, loss=experiment.runs[0].train.loss)
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
    found = remaining()

    assert len(epoch_seconds(store, on_gpu=True)) == 2
    assert found.timed
    assert found.runs[0].hours() == pytest.approx(3 * 36 / 3600)

    for device in ("CPU, 2 threads", "cpu"):
        store.set_placement(timed.key, "box", device, 0)
        assert not remaining().timed


@pytest.mark.parametrize("newest", [0, 1, 2])
def test_the_newest_of_comparable_runs_determines_the_time(store, make_run, newest):
    """
    Their IDs and seeds do not matter: here run 5 twice, and run 6.
    """
    runs = [make_run(5), replicate_of(make_run(5), 1), make_run(6)]
    for place, run in enumerate(runs):
        store.queue([run])
        store.start(run, ORIGIN)
        store.set_placement(run.key, "box", "NVIDIA H200", 0)
        at = f"202{6 if place == newest else 5}-01-01T00:00:00.000+00:00"
        store.record_epochs(run.key, [Epoch(1, {"seconds": 10.0 + place}, at)])

    assert list(epoch_seconds(store, on_gpu=True).values()) == [10.0 + newest]


@pytest.mark.parametrize(
    ("settings", "seconds", "expected"),
    [
        ({}, [9, 1, 1, 1, 1, 1, 50], 1.0),
        ({}, [2, 4, 50], 3.0),
        ({"epochs": 1}, [50], 50.0),
        ({"eval_every": 4}, [1, 1, 1, 9, 1, 1, 1, 9, 1, 1, 1, 50], 3.0),
        ({"eval_every": 10, "epochs": 30}, [*[1] * 9, 11] * 2 + [1], 2.0),
    ],
    ids=["last", "few", "one", "evaluation", "in training"],
)
def test_the_time_is_that_of_whole_cycles_without_the_certified_epoch(
    store, make_run, settings, seconds, expected
):
    """
    The last epoch of a run ends with the certified evaluation, and only some epochs with one.
    """
    run = make_run(5, **({"epochs": len(seconds)} | settings))
    store.queue([run])
    store.start(run, ORIGIN)
    store.set_placement(run.key, "box", "NVIDIA H200", 0)
    for epoch, taken in enumerate(seconds, start=1):
        store.record(run.key, epoch, {"seconds": float(taken)})

    assert list(epoch_seconds(store, on_gpu=True).values()) == [expected]


def test_timing_many_runs_takes_as_many_statements_as_timing_few(store, make_run):
    counts = []
    for ids in (range(2), range(2, 20)):
        for run in map(make_run, ids):
            store.queue([run])
            store.set_placement(run.key, "box", "NVIDIA H200", 0)
            store.record(run.key, 1, {"seconds": 1.0})
        with recorded_statements(store) as sent:
            epoch_seconds(store, on_gpu=True)
        counts.append(len(sent))

    assert counts[0] == counts[1]


def test_a_quarter_of_a_gpu_costs_a_quarter(experiment, store):
    runs = tuple(
        run.model_copy(update={"resources": run.resources.model_copy(update={"gpus": 0.25})})
        for run in experiment.runs
    )
    whole = find_remaining_work(make_report(experiment, store), store).hours
    quarter = replace(experiment, runs=runs)

    assert find_remaining_work(make_report(quarter, store), store).hours == pytest.approx(whole / 4)
