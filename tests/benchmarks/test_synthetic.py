"""
A synthetic store of five seeds of the paper's runs, with known means.
"""

import json
import math

import numpy as np
import pytest

from orchestrator.analysis.margins import certified_share
from orchestrator.analysis.report import make_report, summarize
from orchestrator.analysis.verdicts import Verdict
from orchestrator.reporting.render import render
from orchestrator.spec.fields import RADII
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store
from tests.support.reports import certificate
from tests.support.shell import PROJECT
from tests.support.stores import ORIGIN

IMAGES = 10_000
SEEDS = range(5)
SHIFT = {20: 3.0, 21: -2.5, 22: 0.8}  # percentage points from the published values
UNTRAINED, IN_TRAINING = 32, 31
OFFSETS = (-0.2, -0.1, 0.0, 0.1, 0.2)  # of the seeds; their mean is zero


def margins_of(percents):
    """
    Return margins of which so many percent are certified at each radius, ascending.
    """
    counts = [round(IMAGES * percent / 100) for percent in percents]
    inside = [math.sqrt(2) * radius + 0.01 for radius in RADII.values()]
    margins = np.full(IMAGES, -1.0, "<f4")
    for count, margin in zip(counts, inside, strict=True):
        margins[:count] = margin
    return margins


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    experiment = SpecFile(PROJECT / "experiments.yaml").experiment("paper")
    store = Store(tmp_path_factory.mktemp("synthetic") / "store.db")
    published = {row.run: row.published for table in experiment.tables for row in table.rows}
    for seed, offset in zip(SEEDS, OFFSETS, strict=True):
        for run in experiment.replicates([seed]).runs:
            if run.id == UNTRAINED:
                continue
            store.queue([run])
            store.start(run, ORIGIN)
            if run.id == IN_TRAINING:
                store.record(run.key, 10, {"accuracy": 0.5})
                continue
            shift = SHIFT.get(run.id, 0.0) + offset
            margins = margins_of([max(0.0, value + shift) for value in published[run.id]])
            values = {name: certified_share(margins, radius) for name, radius in RADII.items()}
            store.record(run.key, run.train.epochs, values)
            store.finish(
                run.key,
                Status.DONE,
                margins=margins.tobytes(),
                certificate=certificate(run),
            )
    made = make_report(experiment, store)
    store.close()
    return made


def verdicts_of(report, run):
    return {report.verdicts[cell].verdict for cell in report.cells if cell.run == run}


def test_every_verdict_comes_out_as_designed(report):
    assert verdicts_of(report, UNTRAINED) == {Verdict.MISSING}
    assert verdicts_of(report, IN_TRAINING) == {Verdict.PARTIAL}
    assert verdicts_of(report, 20) == {Verdict.DIFFERS}
    assert verdicts_of(report, 22) == {Verdict.UNDERPOWERED}
    for run in (0, 1, 2, 10, 11, 12, 23, 24, 30):
        assert verdicts_of(report, run) == {Verdict.REPRODUCED}, run
    assert sum(report.counts.values()) == 70


def test_a_share_cannot_fall_below_zero(report):
    """
    The published CRA 1 of run 21 is 2.2%, which cannot be 2.5 points lower.
    """
    assert verdicts_of(report, 21) == {Verdict.DIFFERS}


def test_the_summary_counts_the_verdicts(report):
    assert report.violations == ()
    assert "We reproduced 45 of the 70 published cells of B. Prach" in summarize(report)
    assert "10 differ by more than that" in summarize(report)
    assert "5 are undecided" in summarize(report)
    assert "with 5 seeds per cell" in summarize(report)


def test_the_json_has_the_same_counts(report):
    found = json.loads(render(report, "json"))

    assert found["verdicts"] == {
        "reproduced": 45,
        "differs": 10,
        "underpowered": 5,
        "partial": 5,
        "missing": 5,
    }
    assert {cell["seeds"] for cell in found["cells"]} == {0, 5}
