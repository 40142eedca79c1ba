from dataclasses import replace

import pytest

from aol.certification.singular_values import BINS, Spectrum
from orchestrator.analysis.report import make_report
from orchestrator.reporting.figures import figures_of
from orchestrator.reporting.figures.spectra import singular_values
from orchestrator.store import Status
from tests.support.reports import certificate
from tests.support.stores import ORIGIN

ALL_ONE = Spectrum("1 dense", 4, exact=True, shares=(*[0.0] * (BINS - 1), 1.0)).as_dict()
RECORD = {"start": [ALL_ONE], "trained": [ALL_ONE, ALL_ONE], "jacobian": ALL_ONE}


def finish_with(store, run, record):
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, run.train.epochs, {"accuracy": 0.5})
    store.finish(run.key, Status.DONE, certificate=certificate(run) | {"singular_values": record})
    (stored,) = store.runs()
    return stored


def test_the_figure_has_a_panel_for_the_start_the_trained_layers_and_the_jacobian(reported, store):
    figure = singular_values(finish_with(store, reported.runs[0], RECORD), "a note")
    start, trained, jacobian = figure.axes

    assert start.get_title() == "layers at the start: 100 % above 0.9"
    assert len(trained.get_yticks()) == 2
    assert jacobian.get_title() == "Jacobian at test images: 100 % above 0.9"
    assert "a note" in figure.get_suptitle()


@pytest.mark.parametrize(
    "record", [None, {}, {"start": []}, RECORD | {"jacobian": {"name": "x"}}, [1]]
)
def test_a_run_without_a_valid_record_has_no_figure(reported, store, record):
    assert singular_values(finish_with(store, reported.runs[0], record), "") is None


def test_the_figure_is_drawn_once_per_run(reported, store):
    finish_with(store, reported.runs[0], RECORD)
    report = make_report(replace(reported, comparable=False), store)

    assert [name for name, _ in figures_of(report, store)].count("singular-values-0") == 1
