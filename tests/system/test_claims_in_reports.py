"""
Claims in every form of a report, and a profile that is not comparable with the paper.
"""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from aol.config import AttackConfig
from orchestrator.analysis.claims import judge_by_epoch
from orchestrator.analysis.explain import explain
from orchestrator.analysis.report import make_report, summarize
from orchestrator.cli.explain import claim_text
from orchestrator.cli.missing import missing_json, missing_text
from orchestrator.planning.resources import Cluster, Node
from orchestrator.planning.unresolved import claim_needs, find_remaining_work
from orchestrator.reporting.figures import figures_of
from orchestrator.reporting.html import render_page
from orchestrator.reporting.render import render
from orchestrator.spec.claims import Claim
from orchestrator.spec.fields import RADII
from orchestrator.store import Status
from tests.support.reports import certificate, finish, replicate_of
from tests.support.stores import ORIGIN

ONE_CPU = Cluster((Node(1, 0),))


def claim(name, text, **relation):
    return Claim.model_validate({"id": name, "text": text, "source": "page 3", **relation})


CLAIMS = (
    claim("C1", "22 is above 0.", above={"orders": [[22, 0]], "columns": ["accuracy"]}),
    claim("C2", "0 is above 22.", above={"orders": [[0, 22]], "columns": ["accuracy", "cra_36"]}),
    claim("C3", "At any radius.", above={"orders": [[22, 0]], "columns": ["CRA 1/4"]}),
    claim("C4", "Layers are sound.", at_most={"column": "layer norm", "value": 1}),
)


@pytest.fixture
def claimed(reported):
    """
    The tables of two runs, not comparable with the paper, with claims about them.
    """
    return replace(reported, claims=CLAIMS, comparable=False)


@pytest.fixture
def trained(claimed, store):
    """
    Three seeds of each run: every image has a larger margin in run 22.
    """
    first, second = claimed.runs
    for number in range(3):
        finish(store, replicate_of(first, number), 0.02 * number)
        finish(store, replicate_of(second, number), 0.5 + 0.02 * number)
    return make_report(claimed, store)


@pytest.fixture
def once(claimed, store):
    """
    One seed of each run.
    """
    finish(store, claimed.runs[0], 0.0)
    finish(store, claimed.runs[1], 0.02)
    return make_report(claimed, store)


def verdicts(report):
    return {judged.claim.id: str(judged.verdict) for judged in report.claims}


def test_claims_are_judged_by_the_stored_values_and_margins(trained):
    assert verdicts(trained) == {
        "C1": "holds",
        "C2": "contradicted",
        "C3": "holds",
        "C4": "holds",
    }


def test_with_one_seed_the_images_decide_and_the_report_says_so(once):
    first, *_ = once.claims

    assert first.assessment.basis == "test images"
    assert "One seed: a bootstrap over the test images" in render(once, "md")


def test_markdown_begins_with_the_claims_and_compares_no_cell(trained):
    text = render(trained, "md")

    assert text.index("## Claims") < text.index("## Tables")
    assert "Of 4 claims of the paper, 3 hold, 1 is contradicted." in text
    assert "| C1   | 22 is above 0." in text
    assert "\n- C1: 3 seeds, p = " in text
    assert "✗ contradicted" in text
    assert "## Verdicts" not in text
    assert "published" not in text.partition("## Tables")[2]


def test_a_comparable_profile_has_claims_and_verdicts(claimed, store, trained):
    text = render(make_report(replace(claimed, comparable=True), store), "md")

    assert text.index("## Claims") < text.index("## Verdicts")


def test_json_has_every_step_and_no_verdict_of_a_cell(trained):
    found = json.loads(render(trained, "json"))
    first = found["claims"][0]

    assert found["comparable"] is False
    assert {cell["verdict"] for cell in found["cells"]} == {None}
    assert {cell["difference"] for cell in found["cells"]} == {None}
    assert sum(found["verdicts"].values()) == 0
    assert first["verdict"] == "holds"
    assert first["seeds"] == 3
    assert first["steps"][0]["difference"] > 0


def test_csv_has_a_row_per_claim_below_the_cells(trained):
    rows = list(csv.DictReader(io.StringIO(render(trained, "csv"))))
    claims = [row for row in rows if row["table"] == "claims"]

    assert [row["row"] for row in claims] == ["C1", "C2", "C3", "C4"]
    assert [row["verdict"] for row in claims] == ["holds", "contradicted", "holds", "holds"]
    assert float(claims[0]["interval_low"]) > 0


def test_latex_has_a_table_of_claims_and_no_published_values(trained):
    text = render(trained, "tex")

    assert "\\label{tab:claims}" in text
    assert "22 is above 0. & holds & 3 seeds" in text
    assert "published" not in text


def test_the_page_has_the_claims_first_and_no_coloured_cell(trained, store):
    page = render_page(trained, store, [])
    table = page[page.index("<h2>Tables</h2>") :]

    assert page.index("Claims of the paper</h2>") < page.index("<h2>Tables</h2>")
    assert '<td class="differs">contradicted</td>' in page
    assert 'class="differs"' not in table
    assert 'class="reproduced"' not in table
    assert "Verdicts in words" not in table


def test_figures_show_the_claims_and_no_published_point(claimed, store, trained):
    names = [name for name, _ in figures_of(trained, store)]
    compared = [
        name for name, _ in figures_of(make_report(replace(claimed, comparable=True), store), store)
    ]

    assert names[0] == "claims"
    assert "paper-against-ours" not in names
    assert "paper-against-ours" in compared


@pytest.fixture
def improving(claimed, store):
    """
    Three seeds of each run: run 22 is worse after the first epoch and better after the second.
    """
    for index, run in enumerate(claimed.runs):
        for number in range(3):
            replicate = replicate_of(run, number)
            store.queue([replicate])
            store.start(replicate, ORIGIN)
            for epoch in (1, 2):
                better = (index == 1) == (epoch == 2)
                values = dict.fromkeys(RADII, 0.5 + 0.1 * better + 0.001 * number * number)
                store.record(replicate.key, epoch, values)
            store.finish(replicate.key, Status.DONE, certificate=certificate(replicate))
    return make_report(claimed, store)


def test_the_verdicts_after_each_epoch_are_those_of_its_values(claimed, store, improving):
    by_epoch = judge_by_epoch(claimed, store)
    found = {
        epoch: {claim: str(verdict) for claim, verdict in verdicts.items()}
        for epoch, verdicts in by_epoch.items()
    }

    assert found == {  # margins and norms are kept of the last epoch only
        1: {"C1": "contradicted", "C2": "holds"},
        2: {"C1": "holds", "C2": "contradicted"},
    }
    assert "claims-by-epoch" in [name for name, _ in figures_of(improving, store)]


def test_with_one_seed_no_epoch_before_the_last_is_judged(claimed, store, once):
    assert judge_by_epoch(claimed, store) == {}
    assert "claims-by-epoch" not in [name for name, _ in figures_of(once, store)]


def test_the_summary_counts_claims_and_compares_nothing(trained):
    text = summarize(trained)

    assert text.startswith("Of 4 claims of the paper, 3 hold, 1 is contradicted.")
    assert "reproduced" not in text


def test_a_claim_is_explained_with_its_steps(trained):
    text = claim_text(trained.claims[1])

    assert text.startswith("C2: 0 is above 22.\n  source    page 3\n  verdict   contradicted\n")
    assert text.count("row 0 (run 0) over row 22 (run 22), ") == 3


def test_a_cell_that_is_not_compared_says_why(trained, store):
    (found,) = explain(trained, store, "One/row 0/accuracy")

    assert "not compared, because the profile `demo` is not comparable" in found.verdict
    assert found.record["verdict"] is None


def test_missing_names_the_runs_and_the_hours_that_would_decide(claimed, store):
    report = make_report(claimed, store)
    work, needs = find_remaining_work(report, store), claim_needs(report, store)
    text = missing_text(work, ONE_CPU, needs)
    record = json.loads(missing_json(work, ONE_CPU, needs))

    assert "C1" in text
    assert "not measured" in text
    assert "22,0" in text
    assert record["cells"] == []
    assert [one["claim"] for one in record["claims"]] == ["C1", "C2", "C3", "C4"]
    assert {one["run_id"] for one in record["claims"][0]["trainings"]} == {0, 22}
    assert record["claims"][0]["price"] == pytest.approx(3.0 * record["claims"][0]["hours"])
    assert "estimated on a GPU" in text


def test_hours_on_a_cpu_have_no_price(claimed, store):
    for run in claimed.runs:
        store.queue([run])
        store.start(run, ORIGIN)
        store.set_placement(run.key, "host", "CPU, 1 thread", 0)
        for epoch in range(1, run.train.epochs + 1):
            store.record(run.key, epoch, dict.fromkeys(RADII, 0.5) | {"seconds": 36.0})
        margins = np.zeros(100, "<f4").tobytes()
        store.finish(run.key, Status.DONE, margins=margins, certificate=certificate(run))
    report = make_report(claimed, store)
    work, needs = find_remaining_work(report, store), claim_needs(report, store)
    (first, *_) = json.loads(missing_json(work, ONE_CPU, needs))["claims"]

    assert first["hours"] == pytest.approx(2 * claimed.runs[0].train.epochs * 0.01)
    assert (first["price"], first["timed"]) == (None, True)
    assert "timed on a CPU" in missing_text(work, ONE_CPU, needs)


def test_one_seed_that_decides_nothing_needs_a_second(claimed, store):
    finish(store, claimed.runs[0], 0.0)
    finish(store, claimed.runs[1], 0.0)
    report = make_report(claimed, store)
    needs = {one.judged.claim.id: one for one in claim_needs(report, store)}

    assert verdicts(report)["C1"] == "undecided"
    assert [(run.id, training.replicate) for run, training in needs["C1"].trainings] == [
        (22, 1),
        (0, 1),
    ]
    assert "C4" not in needs


def test_with_every_claim_decided_nothing_is_missing(trained, store):
    text = missing_text(find_remaining_work(trained, store), ONE_CPU, claim_needs(trained, store))

    assert text.endswith("Nothing is missing: every claim is decided.")


@pytest.fixture
def measured(reported, store):
    """
    A run with singular values and an attack, and one without, with columns for them.
    """
    attacked = [
        run.model_copy(update={"train": replace(run.train, attack=AttackConfig(radius=0.1))})
        for run in reported.runs
    ]
    experiment = replace(
        reported, runs=tuple(attacked), measurements=("nearly orthogonal", "under attack")
    )
    first, second = experiment.runs
    finish(store, first, 0.0, spectra=True)
    attack = {"radius": 0.1, "steps": 50, "images": 100, "accuracy": 0.75, "robust": 0.7431}
    found = certificate(first, spectra=True) | {"attack": attack}
    margins = store.margins(first.key)
    store.finish(first.key, Status.DONE, margins=margins, certificate=found)
    finish(store, second, 0.0)
    return make_report(experiment, store)


def test_measurements_are_columns_of_the_tables_in_every_format(measured, store):
    text, page = render(measured, "md"), render_page(measured, store, [])
    records = json.loads(render(measured, "json"))["measurements"]

    assert "|   nearly orthogonal |   under attack |   Run ID |" in text
    assert "|               100.0 |           74.3 |        0 |" in text
    assert "|                   – |              – |       22 |" in text
    assert "& nearly orthogonal & under attack" in render(measured, "tex")
    assert "& 100.0 & 74.3 " in render(measured, "tex")
    assert '<th scope="col">under attack</th>' in page
    assert '<td data-value="74.31">74.3</td>' in page
    assert records[0]["under attack"] == pytest.approx(74.31)
    assert records[1]["nearly orthogonal"] is None
