from dataclasses import replace

import pytest

from orchestrator.analysis.explain import common_patch, explain
from orchestrator.analysis.report import make_report
from orchestrator.errors import RecordError, RequestError
from orchestrator.store import Checkpoint, Status
from tests.support.reports import PATCH, damage_margins, finish, replicate_of
from tests.support.stores import ORIGIN

CHANGED = replace(ORIGIN, git_commit="abc+changes", git_diff=PATCH)


@pytest.fixture
def experiment(reported):
    return replace(reported, base="demo")


@pytest.fixture
def explained(experiment, store):
    """
    Return a function that explains cells, with the store as it is then.
    """

    def explain_cells(*name, **options):
        return explain(make_report(experiment, store), store, *name, **options)

    return explain_cells


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        (("One/row 0/accuracy",), ["One/row 0/accuracy"]),
        (("one/ROW 0/Accuracy",), ["One/row 0/accuracy"]),
        (("ablation/row 22/cra_1",), ["Ablation/row 22/cra_1"]),
        (("22", "cra_72"), ["One/row 22/cra_72", "Ablation/row 22/cra_72"]),
        (("One/row 0", "CRA_1"), ["One/row 0/cra_1"]),
    ],
)
def test_cells_are_found_by_title_by_id_or_by_run(explained, name, titles):
    assert [one.title for one in explained(*name)] == titles


def test_the_beginning_of_a_name_finds_all_its_cells(explained):
    assert len(explained("One/row 0")) == 5
    assert len(explained("One")) == 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (("One/row 1/accuracy",), "there is no cell 'One/row 1/accuracy'"),
        (("One/row 1/accuracy",), "the closest is 'One/row 0/accuracy'"),
        (("One/ro",), "there is no cell"),
        (("7",), "there is no run 7 in the tables; their runs: 0, 22"),
        (
            ("0", "cra"),
            "there is no column 'cra'; the columns: accuracy, cra_36, cra_72, cra_108, cra_1",
        ),
    ],
)
def test_an_unknown_name_is_an_error_with_the_known_ones(explained, name, message):
    with pytest.raises(RequestError, match=message):
        explained(*name)


def test_a_file_without_tables_has_no_cells(experiment, store):
    for name in ("foo", "0"):
        with pytest.raises(RequestError, match="there are no `tables`, so there is no cell"):
            explain(make_report(replace(experiment, tables=()), store), store, name)


def test_an_unknown_replicate_is_an_error_with_the_known_ones(explained, experiment, store):
    with pytest.raises(RequestError, match="--replicate 5: not in the store; its replicates: none"):
        explained("0", replicate=5)

    finish(store, experiment.runs[0], 0.0)
    finish(store, replicate_of(experiment.runs[0], 2), 0.5)
    with pytest.raises(RequestError, match="--replicate 5: not in the store; its replicates: 0, 2"):
        explained("0", replicate=5)


def test_an_explanation_has_the_runs_of_a_cell_and_the_commands_that_reproduce_them(
    explained, experiment, store
):
    run = experiment.runs[0]
    finish(store, run, 0.0)
    store.add_checkpoint(run.key, Checkpoint(3, "/c/3"))
    finish(store, replicate_of(run, 2), 0.5)
    (found,) = explained("One/row 0/accuracy")
    first, second = found.origins

    assert (first.replicate, second.replicate) == (0, 2)
    assert (first.value, first.from_margins) == (75.0, 75.0)
    assert second.value > first.value
    assert first.run.checkpoints == (Checkpoint(3, "/c/3"),)
    assert [attempt.outcome for attempt in first.attempts] == ["done"]
    assert second.commands == (
        "git checkout abc",
        f"python -m orchestrator run {experiment.path} --profile demo --only 0 --seeds 2 "
        "--results again",
    )
    assert [one.replicate for one in explained("One/row 0/accuracy", replicate=2)[0].origins] == [2]


@pytest.mark.parametrize("comparable", [True, False])
def test_an_explanation_names_a_diverged_seed(experiment, store, comparable):
    run = experiment.runs[0]
    finish(store, run, 0.0)
    finish(store, replicate_of(run, 1), 0.0)
    store.finish(replicate_of(run, 1).key, Status.DIVERGED, error="no finite loss")
    report = make_report(replace(experiment, comparable=comparable), store)
    (found,) = explain(report, store, "One/row 0/accuracy")

    assert "Left out: seed 1000 diverged. A cell counts as reproduced only if" in found.verdict
    assert found.record["excluded"] == "seed 1000 diverged"


def test_uncommitted_changes_are_returned_as_a_patch(explained, experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, CHANGED)
    found = explained("0", "accuracy", store_options=["--store", "my store.db"])
    commands = found[0].origins[0].commands

    assert common_patch(found) == PATCH
    assert commands[0] == (
        f"python -m orchestrator explain 0 --spec {experiment.path} --profile demo "
        "--replicate 0 --store 'my store.db' --diff > changes.patch"
    )
    assert commands[1:3] == ("git checkout abc", "git apply changes.patch")


def test_runs_without_a_common_patch_are_an_error(explained, experiment, store):
    with pytest.raises(RequestError, match="no run behind it was trained"):
        common_patch(explained("0"))

    finish(store, experiment.runs[0], 0.0)
    with pytest.raises(RequestError, match="its run has no patch"):
        common_patch(explained("0"))

    other = replicate_of(experiment.runs[0], 1)
    store.queue([other])
    store.start(other, CHANGED)
    with pytest.raises(RequestError, match="different patches; select one run with --replicate"):
        common_patch(explained("0"))
    assert common_patch(explained("0", replicate=1)) == PATCH


def test_an_attempt_selects_the_patch_of_a_part(explained, experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, {"accuracy": 0.5})
    store.start(run, CHANGED)
    store.set_placement(run.key, "box", "CPU", 1)
    store.record(run.key, 2, {"accuracy": 0.5})

    with pytest.raises(RequestError, match="different patches; select one run"):
        common_patch(explained("0"))
    with pytest.raises(RequestError, match="--attempt 3: no run behind it has epochs of this"):
        common_patch(explained("0"), 3)
    assert common_patch(explained("0"), 2) == PATCH


def test_damaged_margins_are_an_error(explained, experiment, store):
    finish(store, experiment.runs[0], 0.0)
    damage_margins(store, 7)

    with pytest.raises(RecordError, match="run 0, seed 0: its margins in the store are damaged"):
        explained("0")
