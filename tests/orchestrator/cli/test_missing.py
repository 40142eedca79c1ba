import json
from dataclasses import replace

import pytest

from orchestrator.analysis.report import make_report
from orchestrator.cli import missing as module
from orchestrator.cli.missing import (
    budget_json,
    budget_text,
    eta_s,
    format_replicates,
    missing_json,
    missing_text,
)
from orchestrator.formatting import format_significant
from orchestrator.planning.budget import allocate_budget
from orchestrator.planning.resources import Cluster, Node
from orchestrator.planning.unresolved import Training, find_remaining_work
from orchestrator.spec.schema import Prices
from tests.support.reports import finish

FOUR_GPUS = Cluster((Node(8, 4),))


@pytest.fixture
def experiment(reported):
    return replace(reported, prices=Prices(gpu_hour=2.0, currency="EUR", tflops=1e-6))


@pytest.fixture
def work(experiment, store):
    return find_remaining_work(make_report(experiment, store), store)


def rows_of(text):
    return [line.split() for line in text.splitlines()[4:] if line.strip()]


def test_missing_has_a_line_per_run_and_a_total(work):
    text = missing_text(work, FOUR_GPUS)
    hours = work.runs[0].hours()

    assert [row[0] for row in rows_of(text)[:2]] == ["0", "22"]
    assert text.startswith("demo: not comparable\n\n")
    assert text.splitlines()[2].split()[-2:] == ["GPU-hours", "EUR"]
    assert rows_of(text)[0][-2:] == [format_significant(hours), f"{2 * hours:.2f}"]
    assert "20 of 20 cells are unresolved. All that can be resolved takes 2 trainings" in text
    assert (
        f"{format_significant(2 * hours)} GPU-hours, {4 * hours:.2f} EUR (assuming 1e-06 TFLOP/s"
        in text
    )
    assert "on this cluster (1 machine, 8 CPUs, 4 GPUs) about" in text


def test_cells_of_a_run_are_grouped_by_their_number_of_further_seeds(work):
    judged = [
        replace(one, further_seeds=seeds)
        for one, seeds in zip(work.runs[0].cells, [1, 1, 3, 3, None] * 2, strict=True)
    ]
    trainings = tuple(Training(number, 3, 1.0) for number in (1, 2, 4))
    mixed = replace(work.runs[0], cells=tuple(judged), trainings=trainings)
    text = missing_text(replace(work, runs=(mixed,), cells=10), FOUR_GPUS)

    assert [row[-4:] for row in rows_of(text)[:2]] == [
        ["1", "1", "1.0", "2.00"],
        ["3", "1..2,4", "3.0", "6.00"],
    ]
    assert "∞  no number of seeds resolves it" in text


def test_one_training_one_cell_and_a_small_price(work):
    judged = work.runs[0].cells[:1]
    quick = replace(work.runs[0], cells=judged, trainings=(Training(0, 3, 1 / 3600),))
    text = missing_text(replace(work, runs=(quick,), cells=1), FOUR_GPUS)

    assert rows_of(text)[0][-2:] == ["0.00028", "0.00"]
    assert "1 of 1 cell is unresolved. All that can be resolved takes 1 training: " in text
    assert "0.00028 GPU-hours, 0.00 EUR" in text
    assert "on this cluster (1 machine, 8 CPUs, 4 GPUs) about 1 s. " in text


def test_nothing_is_missing_when_every_cell_is_resolved(experiment, store):
    for run in experiment.runs:
        finish(store, run, 0.0)
    work = find_remaining_work(make_report(experiment, store), store)

    assert missing_text(work, FOUR_GPUS) == (
        "demo: not comparable\n\nNothing is missing: 20 cells are resolved."
    )
    assert json.loads(missing_json(work, FOUR_GPUS))["cells"] == []


def test_the_json_has_every_cell(work):
    found = json.loads(missing_json(work, FOUR_GPUS))

    assert (found["profile"], found["note"]) == ("demo", "demo: not comparable")
    assert len(found["cells"]) == 20
    assert found["cells"][0] == {
        "cell": "one/row 0/accuracy",
        "run_id": 0,
        "verdict": "missing",
        "further_seeds": 1,
        "replicates": [0],
        "gpu_hours": pytest.approx(work.runs[0].hours()),
        "price": pytest.approx(2 * work.runs[0].hours()),
    }
    assert (found["currency"], found["timed"]) == ("EUR", False)
    assert found["gpu_hours"] == pytest.approx(work.hours)


def test_the_eta_is_bounded_by_the_work_and_by_the_longest_run(work):
    hours = work.runs[0].hours()

    assert eta_s(work, Cluster((Node(8, 1),))) == pytest.approx(2 * hours * 3600)
    assert eta_s(work, FOUR_GPUS) == pytest.approx(hours * 3600)


def test_the_eta_without_gpus_is_that_of_the_cpus(work, monkeypatch):
    cluster = Cluster((Node(2, 0),))
    monkeypatch.setattr(module, "cpu_seconds", lambda flop, given: (flop, given))

    assert eta_s(work, cluster) == (work.flop, cluster)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0..2"), ([5, 0, 2, 3], "0,2..3,5")]
)
def test_replicates_have_the_syntax_of_seeds(numbers, text):
    assert format_replicates([Training(number, 1, 1.0) for number in numbers]) == text


def test_a_budget_has_a_table_and_the_commands(work):
    hours = work.runs[0].hours()
    trainings = tuple(Training(number, 3, hours) for number in (1, 2))
    more = replace(
        work.runs[1],
        cells=tuple(replace(one, further_seeds=2) for one in work.runs[1].cells),
        trainings=trainings,
    )
    work = replace(work, runs=(more, work.runs[0]))
    allocations = allocate_budget(work.runs, 3 * hours)
    text = budget_text(allocations, work, 3 * hours, "run x.yaml --profile demo")

    assert [row[0] for row in rows_of(text)[:2]] == ["0", "22"]
    assert rows_of(text)[1][-6:] == [
        "1..2",
        "10",
        "20",
        format_significant(2 * hours),
        format_significant(3 * hours),
        f"{6 * hours:.2f}",
    ]
    assert "resolve 20 of 20 unresolved cells" in text
    assert text.splitlines()[-2:] == [
        "run x.yaml --profile demo --only 0 --seeds 0",
        "run x.yaml --profile demo --only 22 --seeds 1..2",
    ]
    found = json.loads(budget_json(allocations, work, 3 * hours))
    record = found["chosen"][1]
    assert (found["profile"], found["note"]) == ("demo", "demo: not comparable")
    assert (record["run_id"], record["replicates"], len(record["settles"])) == (22, [1, 2], 10)


def test_a_budget_that_resolves_nothing(work):
    text = budget_text([], work, 0.0, "run")

    assert text.startswith("demo: not comparable\n\n0 GPU-hours resolve 0 of 20 unresolved cells")


def test_the_hours_of_a_budget_have_few_digits(work):
    assert "\n0.00033 GPU-hours resolve" in budget_text([], work, 0.001 / 3, "run")


def test_the_basis_of_the_estimate(work):
    both = replace(work, runs=(replace(work.runs[0], timed=True), work.runs[1]))
    all_of_them = replace(work, runs=tuple(replace(one, timed=True) for one in work.runs))

    assert "(partly assuming 1e-06 TFLOP/s" in missing_text(both, FOUR_GPUS)
    assert "(estimated from epochs timed on GPUs)" in missing_text(all_of_them, FOUR_GPUS)
