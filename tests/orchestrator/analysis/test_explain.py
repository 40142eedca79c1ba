import json
from dataclasses import replace

import pytest

from orchestrator.analysis.explain import explain, patch_of
from orchestrator.analysis.report import make_report
from orchestrator.cli.explain import changed_lines, explained_json, explained_text
from orchestrator.errors import RecordError, RequestError
from orchestrator.store import Checkpoint, Status
from tests.support.reports import certificate, damage_margins, finish
from tests.support.stores import ORIGIN

PATCH = """\
diff --git a/aol/x.py b/aol/x.py
--- a/aol/x.py
+++ b/aol/x.py
@@ -1 +1,2 @@
-old
+new
+more
"""
CHANGED = replace(ORIGIN, git_commit="abc+changes", git_diff=PATCH)


@pytest.fixture
def experiment(reported):
    return replace(reported, base="demo")


@pytest.fixture
def asked(experiment, store):
    """
    What is found for a cell's name.
    """

    def ask(*name, **options):
        return explain(make_report(experiment, store), store, *name, **options)

    return ask


def replicate(run, number):
    return run.model_copy(update={"train": replace(run.train, seed=run.replicate_seed(number))})


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
def test_cells_are_named_as_printed_by_id_or_by_run(asked, name, titles):
    assert [one.title for one in asked(*name)] == titles


def test_the_beginning_of_a_name_means_all_its_cells(asked):
    assert len(asked("One/row 0")) == 5
    assert len(asked("One")) == 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (("One/row 1/accuracy",), "there is no cell 'One/row 1/accuracy'"),
        (("One/row 1/accuracy",), "the nearest is 'One/row 0/accuracy'"),
        (("One/ro",), "there is no cell"),
        (("7",), "no table has a run 7, only 0, 22"),
        (("0", "cra"), "there is no column 'cra', only accuracy, cra_36, cra_72, cra_108, cra_1"),
    ],
)
def test_what_there_is_not_is_said_with_what_there_is(asked, name, said):
    with pytest.raises(RequestError, match=said):
        asked(*name)


def test_a_file_without_tables_has_no_cells(experiment, store):
    for name in ("foo", "0"):
        with pytest.raises(RequestError, match="has no `tables`, so there is no cell"):
            explain(make_report(replace(experiment, tables=()), store), store, name)


def test_a_replicate_that_is_not_there_is_said_with_those_that_are(asked, experiment, store):
    with pytest.raises(RequestError, match="--replicate 5 of it is not in the store, nor is any"):
        asked("0", replicate=5)

    finish(store, experiment.runs[0], 0.0)
    finish(store, replicate(experiment.runs[0], 2), 0.5)
    with pytest.raises(RequestError, match="--replicate 5 of it is not in the store, only 0, 2"):
        asked("0", replicate=5)


def test_a_cell_leads_to_each_of_its_runs_and_the_commands_that_make_them_again(
    asked, experiment, store
):
    run = experiment.runs[0]
    finish(store, run, 0.0)
    store.add_checkpoint(run.key, Checkpoint(3, "/c/3"))
    finish(store, replicate(run, 2), 0.5)
    (found,) = asked("One/row 0/accuracy")
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
    assert [one.replicate for one in asked("One/row 0/accuracy", replicate=2)[0].origins] == [2]


def test_changes_beside_the_commit_come_back_as_a_patch(asked, experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, CHANGED)
    found = asked("0", "accuracy", places=["--store", "my store.db"])
    commands = found[0].origins[0].commands

    assert patch_of(found) == PATCH
    assert commands[0] == (
        f"python -m orchestrator explain 0 --spec {experiment.path} --profile demo "
        "--replicate 0 --store 'my store.db' --diff > changes.patch"
    )
    assert commands[1:3] == ("git checkout abc", "git apply changes.patch")


def test_a_patch_that_there_is_not_or_not_only_one_of_is_refused(asked, experiment, store):
    with pytest.raises(RequestError, match="nothing of it was trained"):
        patch_of(asked("0"))

    finish(store, experiment.runs[0], 0.0)
    with pytest.raises(RequestError, match="no changes beside its commit"):
        patch_of(asked("0"))

    other = replicate(experiment.runs[0], 1)
    store.queue([other])
    store.start(other, CHANGED)
    with pytest.raises(RequestError, match="different patches; name one with --replicate"):
        patch_of(asked("0"))
    assert patch_of(asked("0", replicate=1)) == PATCH


def test_damaged_margins_are_one_line(asked, experiment, store):
    finish(store, experiment.runs[0], 0.0)
    damage_margins(store, 7)

    with pytest.raises(RecordError, match="run 0, seed 0: its margins in the store are damaged"):
        asked("0")


def test_the_text_says_what_a_value_rests_on(asked, experiment, store):
    finish(store, experiment.runs[0], 0.0)
    store.set_placement(experiment.runs[0].key, "box", "CPU, 2 threads", 0)
    text = explained_text(experiment, asked("One/row 0/accuracy"))

    for said in (
        "One/row 0/accuracy\n  differs: 75.0 measured (one seed), 70.0 published.",
        "accuracy     75.0 % (its margins give 75.0)",
        "state        done, 3 of 3 epochs",
        "certificate  sound, certified in float64",
        "commit       abc\n",
        "hardware     box, CPU, 2 threads",
        "fingerprint d-d and should be ddda0fbdddb6cd56-b0b8e1d499dc517d",
        "to make it again:",
    ):
        assert said in text
    assert "packages     torch 2.0 (here " in text


def test_each_seed_is_told_once_with_a_value_per_column(asked, experiment, store):
    run = experiment.runs[0]
    finish(store, run, 0.0)
    finish(store, replicate(run, 1), 0.5)
    text = explained_text(experiment, asked("0"))
    described = text[text.index("\n\n  run 0") :]

    assert text.startswith("demo: not comparable\n\nOne/row 0/accuracy\n  underpowered: ")
    assert "\nAblation/row 0/cra_1\n  " in text
    assert described.count("  run 0 AOL-Small, seed") == 2
    for once_a_seed in ("accuracy", "cra_36", "cra_1 ", "state", "certificate", "git checkout"):
        assert described.count(once_a_seed) == 2


def test_the_text_goes_from_run_to_run(asked, experiment, store):
    for run in experiment.runs:
        finish(store, run, 0.0)
    text = explained_text(experiment, asked("One", "accuracy"))
    places = ["One/row 0/accuracy", "  run 0", "One/row 22/accuracy", "  run 22"]

    assert sorted(places, key=text.index) == places


def test_the_text_says_what_is_known_of_a_run_that_waits_failed_or_is_unsound(
    asked, experiment, store
):
    waiting, failed = experiment.runs
    store.queue([waiting])
    store.queue([failed])
    store.start(failed, CHANGED)
    store.finish(failed.key, Status.FAILED, error="Traceback\nOSError: disk full\n")
    text = explained_text(experiment, asked("One", "accuracy"))

    assert "state        pending, 0 of 3 epochs\n" in text
    assert "to train it elsewhere:" in text
    assert "state        failed, 0 of 3 epochs: OSError: disk full" in text
    assert "commit       abc+changes (3 lines changed, --diff prints them)" in text
    assert "accuracy     – (not finished)" in text

    violated = certificate(failed) | {"arithmetic": "float32"}
    violated["layers"][1]["upper"] = 1.1
    store.finish(failed.key, Status.UNSOUND, certificate=violated)
    unsound = "UNSOUND: layer 1: its bound is 1.1, above 1.000001, certified in float32"
    assert unsound in explained_text(experiment, asked("22", "accuracy"))


def test_changes_that_were_too_many_to_keep_are_said_to_be_lost(asked, experiment, store):
    run = experiment.runs[0]
    store.queue([run])
    store.start(run, replace(CHANGED, git_diff=None))

    assert "commit       abc+changes (the changes were not kept)" in explained_text(
        experiment, asked("0", "cra_1")
    )


def test_the_json_has_the_cell_and_its_runs_without_the_patch(asked, experiment, store):
    run = experiment.runs[0]
    finish(store, run, 0.0)
    store.start(run, CHANGED)
    (cell, _) = json.loads(explained_json(experiment, asked("0", "accuracy")))
    (found,) = cell["runs"]

    assert (cell["profile"], cell["note"]) == ("demo", "demo: not comparable")

    assert (cell["cell"], cell["published"], cell["verdict"]) == (
        "One/row 0/accuracy",
        70.0,
        "partial",
    )
    assert (found["key"], found["changed_lines"], found["config"]["epochs"]) == (run.key, 3, 3)
    assert "diff" not in found


def test_lines_of_a_patch_are_counted_without_its_headers():
    assert changed_lines(PATCH) == 3
