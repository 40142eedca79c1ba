import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.analysis.report import as_records, make_report, summarize
from orchestrator.analysis.tables import fill_tables
from orchestrator.analysis.verdicts import describe_verdict
from orchestrator.formatting import format_percent
from orchestrator.provenance import Provenance
from orchestrator.reporting.html import render_page
from orchestrator.reporting.markdown import render_markdown
from orchestrator.reporting.render import render, write_report
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.schema import Column, Row, Table
from orchestrator.store import Status, Store
from tests.support.reports import replicate_of

ORIGIN = Provenance("abc", {}, "d")
NOTE = "demo: not comparable with the paper (few epochs)"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.db")
    yield store
    store.engine.dispose()


@pytest.fixture
def experiment(make_run):
    return Experiment(
        path=Path("x.yaml"),
        name="tiny",
        source="A paper",
        profile="demo",
        note="",
        checkpoint_seconds=60,
        data_root=None,
        runs=(make_run(0), make_run(22)),
        columns=(
            Column(title="Std Acc", metric="accuracy"),
            Column(title="CRA 36/255", metric="cra_36"),
        ),
        tables=(
            Table(
                id="one",
                title="One",
                rows=[
                    Row(label="AOL-Small", run=0, published=[70.3, 62.9]),
                    Row(label="again", run=22, published=[70.6, 62.8]),
                ],
            ),
            Table(
                id="two",
                title="Two",
                header="Loss offset",
                rows=[Row(label="√2", run=22, published=[70.6, 62.8])],
            ),
        ),
    )


def finish(store, run, accuracy, cra_36, *, status=Status.DONE):
    """
    Store a finished run whose second epoch was its best.
    """
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, {"accuracy": 0.0, "cra_36": 0.0})
    store.record(run.key, 2, {"accuracy": 0.999, "cra_36": 0.999})
    store.record(run.key, 3, {"accuracy": accuracy, "cra_36": cra_36, "train_loss": 1.0})
    store.finish(run.key, status)


def measured(experiment, store):
    """
    Return the measured values of each run of the first table, in percent.
    """
    table = fill_tables(experiment, store)[0]
    return {row[0].run: [cell.measured for cell in row] for row in table.cells}


def test_markdown_has_the_papers_tables_and_the_comparison(experiment, store):
    finish(store, experiment.runs[0], 0.7131, 0.62949)

    assert (
        render_markdown(replace(make_report(experiment, store), violations=())).partition(
            "## Verdicts"
        )[0]
        == """\
# tiny: results of the profile `demo`

Source of the published values: A paper.

Percent of the test images after the last epoch. CRA ε: certified robust accuracy, the
share of images that no change of L2 norm ε can turn wrong (pixels in [0, 1]). –: not there yet.

## As the paper prints them

### One

|           |   Std Acc |   CRA 36/255 |   Run ID |
|:----------|----------:|-------------:|---------:|
| AOL-Small |      71.3 |         62.9 |        0 |
| again     |         – |            – |       22 |

### Two

| Loss offset   |   Std Acc |   CRA 36/255 |   Run ID |
|:--------------|----------:|-------------:|---------:|
| √2            |         – |            – |       22 |

## Beside the published values

measured / published (difference; of several seeds also their number and standard deviation, sd)

### One

|           |            Std Acc |         CRA 36/255 |   Run ID |
|:----------|-------------------:|-------------------:|---------:|
| AOL-Small | 71.3 / 70.3 (+1.0) | 62.9 / 62.9 (+0.0) |        0 |
| again     |           – / 70.6 |           – / 62.8 |       22 |

### Two

| Loss offset   |   Std Acc |   CRA 36/255 |   Run ID |
|:--------------|----------:|-------------:|---------:|
| √2            |  – / 70.6 |     – / 62.8 |       22 |

"""
    )


def test_markdown_has_the_verdicts_with_intervals_and_a_legend(experiment, store):
    """
    One seed has the prior's spread; one cell equals the paper, one is far beyond the margin.
    """
    finish(store, experiment.runs[0], 0.703, 0.70)
    text = render_markdown(make_report(experiment, store)).partition("## Verdicts")[2]

    assert "| ✓ +0.0 [-0.8, +0.8]° |" in text
    assert "✗ +7.1 [+6.3, +7.9]° |" in text
    assert "| √2            |         – |            – |       22 |" in text
    assert "° : one seed" in text.replace("°:", "° :")
    assert summarize(make_report(experiment, store)) in text


def test_violations_are_at_the_top(experiment, store):
    finish(store, experiment.runs[0], 0.5, 0.75)
    text = render_markdown(make_report(experiment, store))

    assert "**Violated invariants; do not trust the numbers below:**" in text.partition("## As")[0]
    assert "- run 0, seed 0: there are no margins" in text


def test_the_summary_counts_the_verdicts(experiment, store):
    finish(store, experiment.runs[0], 0.703, 0.70)
    report = make_report(experiment, store)
    text = summarize(replace(report, violations=()))

    assert text == (
        "We reproduced 1 of the 6 published cells of A paper: there, two one-sided tests at 5% "
        "show the true difference to be within 1 percentage point of the published value. 1 "
        "differs by more than that (5%, Holm's correction over all measured cells). 4 have "
        "no value. Values are those of the last epoch on all test images, with 1 seed "
        "per cell; the published values have one."
    )


@pytest.mark.parametrize("status", [Status.UNSOUND, Status.DIVERGED])
def test_every_format_names_violations_and_excluded_runs(experiment, store, status):
    finish(store, experiment.runs[0], 0.5, 0.75)
    finish(store, experiment.runs[1], 0.9, 0.9, status=status)
    report = make_report(experiment, store)
    summary, tex = summarize(report), render(report, "tex")

    broken = len(report.violations)
    assert summary.startswith(f"(Violated invariants: {broken}, so this is no claim.) We ")
    assert summary.endswith(f" Left out as {status}: 1 of the runs.")
    assert json.loads(render(report, "json"))["summary"] == summary
    assert (
        "% Invariant violated, do not trust the numbers below: run 0, seed 0: there are no margins"
        in tex
    )
    assert f"\\par Run 22 with seed 22 is left out, {status}: " in tex
    assert tex.index("% Invariant violated") < tex.index(r"\begin{table}")


def test_the_summary_begins_with_the_note(experiment, store):
    text = summarize(make_report(replace(experiment, note=NOTE), store))

    claim = "as a claim about the paper this would read:"
    assert text.startswith(f"({NOTE}; {claim}) We reproduced 0 of the 6")


def test_the_note_is_at_the_top_and_in_the_title_of_every_table(experiment, store):
    experiment = replace(experiment, note=NOTE)
    lines = render_markdown(make_report(experiment, store)).splitlines()

    assert f"> **{NOTE}**" in lines
    assert [line for line in lines if line.startswith("###")] == [
        "### One — demo",
        "### Two — demo",
    ] * 3


def test_the_note_of_changed_settings_is_in_the_title_of_every_table(experiment, store):
    experiment = replace(experiment, note="custom: paper with epochs=3; not comparable")
    text = render_markdown(make_report(experiment, store))

    assert text.count(" — custom\n") == 6


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.0"),
        (100.0, "100.0"),
        (70.349, "70.3"),
        (70.351, "70.4"),
        (0.04, "0.0"),
        (9.96, "10.0"),
    ],
)
def test_percentages_have_one_decimal(value, text):
    assert format_percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.26, "+0.3"), (-0.26, "-0.3"), (0.0, "+0.0"), (-0.04, "+0.0"), (None, "–")],
)
def test_differences_have_a_sign(value, text):
    assert format_percent(value, signed=True) == text


def test_the_last_epoch_counts_not_the_best(experiment, store):
    finish(store, experiment.runs[0], 0.5, 0.25)

    assert measured(experiment, store)[0] == [50, 25]


@pytest.mark.parametrize("status", [Status.FAILED, Status.INTERRUPTED, Status.DIVERGED])
def test_an_unfinished_run_has_no_number(experiment, store, status):
    finish(store, experiment.runs[0], 0.5, 0.25, status=status)

    assert measured(experiment, store) == {0: [None, None], 22: [None, None]}


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (Status.UNSOUND, "layer 1: its bound is 1.01"),
        (Status.DIVERGED, "run 22: the loss of epoch 2 is nan"),
    ],
)
def test_an_excluded_run_has_no_number_and_a_line_below_its_tables(
    experiment, store, status, error
):
    finish(store, experiment.runs[0], 0.5, 0.25)
    finish(store, experiment.runs[1], 0.9, 0.9, status=status)
    store.finish(experiment.runs[1].key, status, error=error)
    report = make_report(experiment, store)
    line = f"Run 22 with seed 22 is left out, {status}: {error}"

    assert measured(experiment, store) == {0: [50, 25], 22: [None, None]}
    assert [table.excluded for table in report.tables] == [(line,), (line,)]
    assert render_markdown(report).count(f"|\n\n{line}\n") == 6  # two tables, three times
    assert render_page(report, store, []).count(f'<p class="violation">{line}</p>') == 2
    assert json.loads(render(report, "json"))[str(status)] == [line]


@pytest.fixture
def with_diverged_seed(experiment, store):
    """
    Return the report of a run that is as published, but for a seed that diverged.
    """
    run = experiment.runs[0]
    finish(store, run, 0.703, 0.629)
    finish(store, replicate_of(run, 1), 0.9, 0.9, status=Status.DIVERGED)
    return replace(make_report(experiment, store), violations=())


def test_every_format_names_the_diverged_seed_of_a_cell(with_diverged_seed, store):
    report = with_diverged_seed
    markdown, page = render_markdown(report), render_page(report, store, [])
    csv, tex = render(report, "csv"), render(report, "tex")
    cell = json.loads(render(report, "json"))["cells"][0]

    assert "?+∞† +0.0 [" in markdown
    assert "70.3 ?+∞†°" in page
    assert "Left out: seed 1000 diverged. A cell counts" in page
    assert ",seed 1000 diverged,," in csv
    assert r"70.3$\dagger$ (70.3)" in tex
    assert r"\par Run 0 with seed 1000 is left out, diverged: " in tex
    assert (cell["verdict"], cell["excluded"]) == ("underpowered", "seed 1000 diverged")
    assert summarize(report).startswith("We reproduced 0 of the 6 published cells")


def test_an_unsound_replicate_is_excluded_from_the_mean(experiment, store):
    run = experiment.runs[0]
    finish(store, run, 0.70, 0.60)
    finish(store, replicate_of(run, 1), 0.9, 0.9, status=Status.UNSOUND)

    assert measured(experiment, store)[0] == [pytest.approx(70), pytest.approx(60)]
    assert "Run 0 with seed 1000 is left out" in render_markdown(make_report(experiment, store))


def test_runs_with_equal_settings_are_distinguished_by_their_id(experiment, store):
    finish(store, experiment.runs[0], 0.5, 0.25)
    finish(store, experiment.runs[1], 0.75, 0.125)

    assert experiment.runs[0].train.digest() == experiment.runs[1].train.digest()
    assert measured(experiment, store) == {0: [50, 25], 22: [75, 12.5]}


def test_only_runs_with_exactly_the_profiles_settings_count(experiment, store):
    """
    Results of another profile or of earlier settings do not count.
    """
    run = experiment.runs[0]
    other = run.model_copy(update={"train": replace(run.train, batch_size=51)})
    finish(store, other, 0.9, 0.9)
    before = measured(experiment, store)
    finish(store, run, 0.5, 0.25)

    assert before[0] == [None, None]
    assert measured(experiment, store)[0] == [50, 25]


def test_the_settings_of_a_profile_count_not_its_name(experiment, store):
    finish(store, experiment.runs[0].model_copy(update={"profile": "custom"}), 0.5, 0.25)

    assert measured(experiment, store)[0] == [50, 25]


def test_replicates_are_averaged_and_counted(experiment, store):
    run = experiment.runs[0]
    finish(store, run, 0.70, 0.60)
    finish(store, replicate_of(run, 1), 0.71, 0.64)
    finish(store, replicate_of(run, 2), 0.9, 0.9, status=Status.FAILED)
    report = make_report(experiment, store)
    cell = report.tables[0].cells[0][0]

    assert cell.measured == pytest.approx(70.5)
    assert cell.difference == pytest.approx(0.2)
    assert cell.seeds == 2
    assert cell.sd == pytest.approx(0.5**0.5)
    assert "70.5 / 70.3 (+0.2, 2 seeds, sd 0.71)" in render_markdown(report)
    assert r"AOL-Small & 70.5 $\pm$ 0.7 & " in render(report, "tex")
    assert "(2 seeds, standard deviation 0.71)" in describe_verdict(report.verdicts[cell])
    assert as_records(report)[0]["sd"] == pytest.approx(0.5**0.5)


def test_a_missing_metric_leaves_the_others(experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.record(run.key, 3, {"accuracy": 0.5})
    store.finish(run.key, Status.DONE)

    assert measured(experiment, store)[0] == [50, None]


def test_the_row_of_an_unselected_run_stays_empty(experiment, store):
    finish(store, experiment.runs[0], 0.5, 0.25)

    assert measured(experiment.select([22]), store) == {0: [None, None], 22: [None, None]}


def test_records_have_everything_about_a_cell(experiment, store):
    finish(store, experiment.runs[0], 0.5, 0.25)
    first, *rest = as_records(make_report(experiment, store))

    assert first == {
        "table": "one",
        "row": "AOL-Small",
        "run_id": 0,
        "column": "Std Acc",
        "metric": "accuracy",
        "published": 70.3,
        "measured": 50.0,
        "difference": pytest.approx(-20.3),
        "seeds": 1,
        "excluded": None,
        "sd": None,
        "verdict": "differs",
        "margin": 1.0,
        "interval_low": pytest.approx(-21.135, abs=1e-3),
        "interval_high": pytest.approx(-19.465, abs=1e-3),
        "spread": pytest.approx(0.2),
        "spread_from_prior": True,
        "p_equivalent": pytest.approx(1.0, abs=1e-3),
        "p_differs": pytest.approx(0.0, abs=1e-3),
        "further_seeds": None,
        "binomial": pytest.approx(9.6, abs=0.1),
    }
    assert len(rest) == 5
    assert (rest[1]["measured"], rest[1]["difference"], rest[1]["seeds"]) == (None, None, 0)


def test_json_has_the_note_and_every_cell(experiment, store):
    experiment = replace(experiment, note=NOTE)
    report = make_report(experiment, store)
    text = render(report, "json")

    assert json.loads(text) == {
        "schema": 1,
        "experiment": "tiny",
        "profile": "demo",
        "note": NOTE,
        "summary": summarize(report),
        "comparable": True,
        "claims": [],
        "verdicts": {
            "reproduced": 0,
            "differs": 0,
            "underpowered": 0,
            "partial": 0,
            "missing": 6,
        },
        "unsound": [],
        "diverged": [],
        "broken": [],
        "cells": as_records(report),
        "measurements": [],
    }
    assert "√2" in text


def test_csv_has_a_line_per_cell_and_empty_fields_without_a_value(experiment, store):
    finish(store, experiment.runs[0], 0.5, 0.25)
    rows = list(csv.DictReader(io.StringIO(render(make_report(experiment, store), "csv"))))

    assert len(rows) == 6
    assert (rows[0]["run_id"], rows[0]["published"], rows[0]["measured"]) == ("0", "70.3", "50.0")
    assert (rows[2]["run_id"], rows[2]["measured"], rows[2]["seeds"]) == ("22", "", "0")


def test_every_line_of_the_csv_has_the_profile_and_its_note(experiment, store):
    experiment = replace(experiment, note=NOTE)
    rows = list(csv.DictReader(io.StringIO(render(make_report(experiment, store), "csv"))))

    assert {(row["profile"], row["note"]) for row in rows} == {(experiment.profile, NOTE)}
    first, *_, last = rows[0]
    assert (first, last) == ("profile", "note")


@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_the_file_contains_the_rendered_report_and_no_other_file_remains(
    experiment, store, tmp_path, form
):
    report = make_report(experiment, store)
    path = write_report(report, tmp_path / "out", form)

    assert path == tmp_path / "out" / "demo" / f"tables.{form}"
    assert path.read_text(encoding="utf-8") == render(report, form)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_failed_report_leaves_the_earlier_one_unchanged(experiment, store, tmp_path):
    """
    A full disk or a killed process must not truncate the tables.
    """
    report = make_report(experiment, store)
    path = write_report(report, tmp_path, "md")
    before = path.read_text(encoding="utf-8")
    unwritable = replace(experiment, source="\ud800")

    with pytest.raises(UnicodeEncodeError):
        write_report(replace(report, experiment=unwritable), tmp_path, "md")
    assert path.read_text(encoding="utf-8") == before


def test_readers_of_a_report_do_not_see_its_replacement(experiment, store, tmp_path):
    """
    An open file keeps its contents, because it is replaced, not overwritten.
    """
    report = make_report(experiment, store)
    path = write_report(report, tmp_path, "md")
    with path.open(encoding="utf-8") as reader:
        write_report(replace(report, experiment=replace(experiment, name="other")), tmp_path, "md")
        seen = reader.read()

    assert seen.startswith("# tiny:")
    assert path.read_text(encoding="utf-8").startswith("# other:")


def test_seeds_that_are_no_replicate_do_not_count(experiment, store):
    run = experiment.runs[0]
    finish(store, run, 0.7, 0.6)
    other = run.model_copy(update={"train": replace(run.train, seed=run.train.seed + 5)})
    finish(store, other, 0.5, 0.4)

    first = as_records(make_report(experiment, store))[0]

    assert (first["measured"], first["seeds"]) == (70.0, 1)
