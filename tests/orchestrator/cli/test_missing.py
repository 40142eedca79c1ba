import json
from dataclasses import replace

import pytest

from orchestrator.analysis.report import make_report
from orchestrator.cli import missing as costing
from orchestrator.cli.missing import (
    budget_json,
    budget_text,
    eta_s,
    missing_json,
    missing_text,
    replicates,
)
from orchestrator.formatting import format_significant
from orchestrator.planning.budget import choose_within_budget
from orchestrator.planning.remaining import Training, find_remaining_work
from orchestrator.planning.resources import Cluster, Node
from orchestrator.spec.schema import Prices
from tests.support.reports import finish

FOUR_GPUS = Cluster((Node(8, 4),))


@pytest.fixture
def experiment(reported):
    return replace(reported, prices=Prices(gpu_hour=2.0, currency="EUR", tflops=1e-6))


@pytest.fixture
def needs(experiment, store):
    return find_remaining_work(make_report(experiment, store), store)


def rows_of(text):
    return [line.split() for line in text.splitlines()[4:] if line.strip()]


def test_what_is_missing_is_a_line_per_run_and_a_total(needs):
    text = missing_text(needs, FOUR_GPUS)
    hours = needs.runs[0].hours()

    assert [row[0] for row in rows_of(text)[:2]] == ["0", "22"]
    assert text.startswith("demo: not comparable\n\n")
    assert text.splitlines()[2].split()[-2:] == ["GPU-hours", "EUR"]
    assert rows_of(text)[0][-2:] == [format_significant(hours), f"{2 * hours:.2f}"]
    assert "20 of 20 cells are not settled. All that seeds can settle takes 2 trainings" in text
    assert (
        f"{format_significant(2 * hours)} GPU-hours, {4 * hours:.2f} EUR (taking 1e-06 TFLOP/s"
        in text
    )
    assert "on this cluster (1 machine, 8 CPUs, 4 GPUs) about" in text


def test_cells_of_one_run_that_ask_for_other_numbers_of_seeds_are_lines_of_their_own(needs):
    judged = [
        replace(one, further_seeds=seeds)
        for one, seeds in zip(needs.runs[0].cells, [1, 1, 3, 3, None] * 2, strict=True)
    ]
    trainings = tuple(Training(number, 3, 1.0) for number in (1, 2, 4))
    mixed = replace(needs.runs[0], cells=tuple(judged), trainings=trainings)
    text = missing_text(replace(needs, runs=(mixed,), cells=10), FOUR_GPUS)

    assert [row[-4:] for row in rows_of(text)[:2]] == [
        ["1", "1", "1.0", "2.00"],
        ["3", "1..2,4", "3.0", "6.00"],
    ]
    assert "∞  no number settles it" in text


def test_one_training_one_cell_and_a_small_price_are_said_as_such(needs):
    judged = needs.runs[0].cells[:1]
    quick = replace(needs.runs[0], cells=judged, trainings=(Training(0, 3, 1 / 3600),))
    text = missing_text(replace(needs, runs=(quick,), cells=1), FOUR_GPUS)

    assert rows_of(text)[0][-2:] == ["0.00028", "0.00"]
    assert "1 of 1 cell is not settled. All that seeds can settle takes 1 training: " in text
    assert "0.00028 GPU-hours, 0.00 EUR" in text
    assert "on this cluster (1 machine, 8 CPUs, 4 GPUs) about 1 s. " in text


def test_when_all_is_settled_it_says_so(experiment, store):
    for run in experiment.runs:
        finish(store, run, 0.0)
    needs = find_remaining_work(make_report(experiment, store), store)

    assert missing_text(needs, FOUR_GPUS) == (
        "demo: not comparable\n\nNothing is open: 20 cells are settled."
    )
    assert json.loads(missing_json(needs, FOUR_GPUS))["cells"] == []


def test_the_json_has_every_cell(needs):
    found = json.loads(missing_json(needs, FOUR_GPUS))

    assert (found["profile"], found["note"]) == ("demo", "demo: not comparable")
    assert len(found["cells"]) == 20
    assert found["cells"][0] == {
        "cell": "one/row 0/accuracy",
        "run_id": 0,
        "verdict": "missing",
        "further_seeds": 1,
        "replicates": [0],
        "gpu_hours": pytest.approx(needs.runs[0].hours()),
        "price": pytest.approx(2 * needs.runs[0].hours()),
    }
    assert (found["currency"], found["timed"]) == ("EUR", False)
    assert found["gpu_hours"] == pytest.approx(needs.hours)


def test_a_cluster_is_done_when_its_work_and_its_longest_run_are(needs):
    hours = needs.runs[0].hours()

    assert eta_s(needs, Cluster((Node(8, 1),))) == pytest.approx(2 * hours * 3600)
    assert eta_s(needs, FOUR_GPUS) == pytest.approx(hours * 3600)


def test_without_gpus_the_processors_are_asked(needs, monkeypatch):
    cluster = Cluster((Node(2, 0),))
    monkeypatch.setattr(costing, "cpu_seconds", lambda flop, given: (flop, given))

    assert eta_s(needs, cluster) == (needs.flop, cluster)


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2], "0..2"), ([5, 0, 2, 3], "0,2..3,5")]
)
def test_replicates_are_written_as_seeds_takes_them(numbers, text):
    assert replicates([Training(number, 1, 1.0) for number in numbers]) == text


def test_a_budgets_plan_is_an_order_and_the_commands_that_follow_it(needs):
    hours = needs.runs[0].hours()
    trainings = tuple(Training(number, 3, hours) for number in (1, 2))
    more = replace(
        needs.runs[1],
        cells=tuple(replace(one, further_seeds=2) for one in needs.runs[1].cells),
        trainings=trainings,
    )
    needs = replace(needs, runs=(more, needs.runs[0]))
    chosen = choose_within_budget(needs.runs, 3 * hours)
    text = budget_text(chosen, needs, 3 * hours, "run x.yaml --profile demo")

    assert [row[0] for row in rows_of(text)[:2]] == ["0", "22"]
    assert rows_of(text)[1][-6:] == [
        "1..2",
        "10",
        "20",
        format_significant(2 * hours),
        format_significant(3 * hours),
        f"{6 * hours:.2f}",
    ]
    assert "settle 20 of 20 open cells" in text
    assert text.splitlines()[-2:] == [
        "run x.yaml --profile demo --only 0 --seeds 0",
        "run x.yaml --profile demo --only 22 --seeds 1..2",
    ]
    found = json.loads(budget_json(chosen, needs, 3 * hours))
    record = found["chosen"][1]
    assert (found["profile"], found["note"]) == ("demo", "demo: not comparable")
    assert (record["run_id"], record["replicates"], len(record["settles"])) == (22, [1, 2], 10)


def test_a_budget_too_small_for_anything_says_so(needs):
    text = budget_text([], needs, 0.0, "run")

    assert text.startswith("demo: not comparable\n\n0 GPU-hours settle 0 of 20 open cells")


def test_a_budget_of_money_is_said_in_few_digits(needs):
    assert "\n0.00033 GPU-hours settle" in budget_text([], needs, 0.001 / 3, "run")


def test_what_was_timed_in_part_is_said(needs):
    both = replace(needs, runs=(replace(needs.runs[0], timed=True), needs.runs[1]))
    all_of_them = replace(needs, runs=tuple(replace(one, timed=True) for one in needs.runs))

    assert "(partly taking 1e-06 TFLOP/s" in missing_text(both, FOUR_GPUS)
    assert "(by epochs timed on GPUs)" in missing_text(all_of_them, FOUR_GPUS)
