import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.analysis.margins import compare_runs, without_margins
from orchestrator.cli.compare import comparison_table, cra_table
from orchestrator.errors import RecordError, RequestError, SpecError
from orchestrator.spec.schema import RADII
from orchestrator.store import Status
from tests.support.reports import damage_margins
from tests.support.stores import ORIGIN


def finish(store, run, margins, status=Status.DONE):
    store.queue([run])
    store.start(run, ORIGIN)
    store.finish(run.key, status, margins=np.asarray(margins, "<f4").tobytes())


def test_two_runs_are_compared_in_every_column(reported, store):
    finish(store, reported.runs[0], np.linspace(-1, 3, 100))
    finish(store, reported.runs[1], np.linspace(-0.5, 3.5, 100))
    found = compare_runs(reported, store, (0, 22))

    assert list(found) == list(RADII)
    assert [one.radius for one in found.values()] == list(RADII.values())
    assert all(one.second > one.first for one in found.values())
    assert all(one.only_first == 0 and one.p < 0.01 for one in found.values())


def test_the_table_says_shares_in_percent_and_the_json_all(reported, store):
    finish(store, reported.runs[0], [1.0] * 60 + [-1.0] * 40)
    finish(store, reported.runs[1], [1.0] * 70 + [-1.0] * 30)
    found = compare_runs(reported, store, (0, 22))
    text = comparison_table(reported, found, (0, 22))
    first_row = text.splitlines()[4].split()

    assert first_row[:4] == ["accuracy", "60.0", "70.0", "+10.0"]
    assert first_row[-3:] == ["0", "10", "0.002"]
    assert text.startswith("demo: not comparable\n\n")
    plain = json.loads(comparison_table(reported, found, (0, 22), as_json=True))
    record = plain.pop("columns")["accuracy"]
    assert plain == {"profile": "demo", "note": "demo: not comparable", "runs": [0, 22]}
    assert (record["first"], record["second"], record["only_second"]) == (0.6, 0.7, 10)


@pytest.mark.parametrize("status", [Status.FAILED, Status.UNSOUND])
def test_a_run_that_is_not_finished_is_named(reported, store, status):
    finish(store, reported.runs[0], [1.0])
    finish(store, reported.runs[1], [1.0], status)

    with pytest.raises(RequestError, match="run 22 with seed 22 of the profile `demo` is not"):
        compare_runs(reported, store, (0, 22))


def test_an_unknown_run_is_named(reported, store):
    with pytest.raises(SpecError, match="there is no run 7"):
        compare_runs(reported, store, (0, 7))


def test_a_run_is_not_compared_with_itself(reported, store):
    finish(store, reported.runs[0], [1.0])

    with pytest.raises(RequestError, match="run 0 does not differ from itself; name two runs"):
        compare_runs(reported, store, (0, 0))


def test_two_runs_of_the_same_settings_are_compared(reported, store):
    """
    As runs 0 and 22 of the paper, which share even their seed.
    """
    first = reported.runs[0]
    twins = replace(reported, runs=(first, first.model_copy(update={"id": 22})))
    for run in twins.runs:
        finish(store, run, [1.0] * 10)

    assert twins.runs[0].train == twins.runs[1].train
    assert compare_runs(twins, store, (0, 22))["accuracy"].p == 1.0


def test_a_finished_run_without_margins_is_named(reported, store):
    first, second = reported.runs
    finish(store, first, [1.0])
    store.queue([second])
    store.start(second, ORIGIN)
    store.finish(second.key, Status.DONE)

    with pytest.raises(RequestError, match="run 22: the store has no margins of 22-s22-"):
        compare_runs(reported, store, (0, 22))


def test_damaged_margins_are_one_line_that_names_the_run(reported, store):
    for run in reported.runs:
        finish(store, run, [1.0])
    damage_margins(store, 3)

    for read in (
        lambda: compare_runs(reported, store, (22, 0)),
        lambda: cra_table(reported, store, 1),
    ):
        with pytest.raises(RecordError) as caught:
            read()
        assert "seed" in str(caught.value)
    assert caught.value.exit_code == 1
    assert str(caught.value) == (
        "run 0, seed 0: its margins in the store are damaged; `run --rerun 0` makes them anew, "
        "`merge --replace` takes them from another store"
    )


def test_runs_of_other_datasets_are_refused(reported, store):
    data = replace(reported.runs[1].train.data, name="digit-pairs")
    train = replace(reported.runs[1].train, data=data)
    other = reported.runs[1].model_copy(update={"train": train})

    with pytest.raises(RequestError, match="0 and 22 have other images: digits, digit-pairs"):
        compare_runs(replace(reported, runs=(reported.runs[0], other)), store, (0, 22))


def test_runs_on_other_images_are_refused(reported, store, make_run):
    finish(store, reported.runs[0], [1.0])
    finish(store, reported.runs[1], [1.0, 2.0])

    with pytest.raises(RequestError, match="1 and 2 images are not the same test set"):
        compare_runs(reported, store, (0, 22))


def test_replicates_are_compared_by_number(reported, store):
    for run in reported.replicates([1]).runs:
        finish(store, run, [1.0] * 10)

    assert compare_runs(reported, store, (0, 22), replicate=1)["accuracy"].p == 1.0
    with pytest.raises(RequestError, match="run 0 with seed 0"):
        compare_runs(reported, store, (0, 22))


def test_finished_runs_without_margins_are_told(reported, store):
    first, second = reported.runs
    finish(store, first, [1.0])
    store.queue([second])
    store.start(second, ORIGIN)
    store.finish(second.key, Status.DONE)
    (record,) = json.loads(cra_table(reported, store, 0.5, as_json=True))

    assert record["run_id"] == 0
    assert without_margins(reported, store) == [
        "run 22, seed 22: left out, the store has no margins of it; `run --rerun 22` makes them"
    ]


def test_any_radius_has_a_row_per_finished_run(reported, store):
    finish(store, reported.runs[0], [0.5, 1.0, 2.0, -1.0])
    note, _, *rows = cra_table(reported, store, 0.5).splitlines()
    (record,) = json.loads(cra_table(reported, store, 0.5, as_json=True))

    assert rows[2].split() == ["0", "AOL-Small", "digits", "0", "50.0"]
    assert len(rows) == 3
    assert (record["run_id"], record["radius"], record["cra"]) == (0, 0.5, 0.5)
    assert note == record["note"] == "demo: not comparable"
    assert record["profile"] == "demo"
