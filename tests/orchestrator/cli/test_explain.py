import json
from dataclasses import replace

import pytest

from orchestrator.analysis.explain import explain
from orchestrator.analysis.report import make_report
from orchestrator.cli.explain import count_changed_lines, explanation_json, explanation_text
from orchestrator.store import Status
from tests.support.reports import PATCH, certificate, finish, replicate_of
from tests.support.stores import ORIGIN

CHANGED = replace(ORIGIN, git_commit="abc+changes", git_diff=PATCH)


@pytest.fixture
def explained(reported, store):
    """
    Return a function that explains cells, with the store as it is then.
    """
    return lambda *name: explain(make_report(reported, store), store, *name)


def test_the_text_has_the_facts_about_a_run(explained, reported, store):
    finish(store, reported.runs[0], 0.0)
    store.set_placement(reported.runs[0].key, "box", "CPU, 2 threads", 0)
    text = explanation_text(reported, explained("One/row 0/accuracy"))

    for fact in (
        "One/row 0/accuracy\n  differs: 75.0 measured (one seed), 70.0 published.",
        "accuracy     75.0 % (75.0 % recomputed from the margins)",
        "state        done, 3 of 3 epochs",
        "certificate  sound, certified in float64",
        "commit       abc\n",
        "hardware     box, CPU, 2 threads",
        "fingerprint d-d instead of ddda0fbdddb6cd56-b0b8e1d499dc517d",
        "to reproduce it:",
    ):
        assert fact in text
    assert "packages     torch 2.0 (here " in text


def test_each_seed_is_listed_once_with_a_value_per_column(explained, reported, store):
    run = reported.runs[0]
    finish(store, run, 0.0)
    finish(store, replicate_of(run, 1), 0.5)
    text = explanation_text(reported, explained("0"))
    seeds = text[text.index("\n\n  run 0") :]

    assert text.startswith("demo: not comparable\n\nOne/row 0/accuracy\n  underpowered: ")
    assert "\nAblation/row 0/cra_1\n  " in text
    assert seeds.count("  run 0 AOL-Small, seed") == 2
    for fact in ("accuracy", "cra_36", "cra_1 ", "state", "certificate", "git checkout"):
        assert seeds.count(fact) == 2


def test_the_text_is_grouped_by_run(explained, reported, store):
    for run in reported.runs:
        finish(store, run, 0.0)
    text = explanation_text(reported, explained("One", "accuracy"))
    parts = ["One/row 0/accuracy", "  run 0", "One/row 22/accuracy", "  run 22"]

    assert sorted(parts, key=text.index) == parts


def test_the_text_of_a_pending_a_failed_and_an_unsound_run(explained, reported, store):
    pending, failed = reported.runs
    store.queue([pending])
    store.queue([failed])
    store.start(failed, CHANGED)
    store.finish(failed.key, Status.FAILED, error="Traceback\nOSError: disk full\n")
    text = explanation_text(reported, explained("One", "accuracy"))

    assert "state        pending, 0 of 3 epochs\n" in text
    assert "to train it:" in text
    assert "state        failed, 0 of 3 epochs: OSError: disk full" in text
    assert "commit       abc+changes (3 changed lines; print them with --diff)" in text
    assert "accuracy     – (not finished)" in text

    violated = certificate(failed) | {"arithmetic": "float32"}
    violated["layers"][1]["upper"] = 1.1
    store.finish(failed.key, Status.UNSOUND, certificate=violated)
    unsound = "UNSOUND: layer 1: its bound is 1.1, above 1.000001, certified in float32"
    assert unsound in explanation_text(reported, explained("22", "accuracy"))


def test_a_run_of_two_parts_has_the_origin_and_the_recipe_of_each(explained, reported, store):
    """
    It was continued under another commit, with changes, on a GPU.
    """
    run = reported.runs[0]
    store.queue([run])
    for epoch, (device, origin) in enumerate(
        [("CPU", ORIGIN), ("NVIDIA H200", replace(CHANGED, gpu_driver="580.1"))]
    ):
        store.start(run, ORIGIN)
        store.set_placement(run.key, f"box{epoch}", device, epoch, origin)
        store.record(run.key, epoch + 1, {"accuracy": 0.5})
    text = explanation_text(reported, explained("0", "accuracy"))
    (cell, _) = json.loads(explanation_json(reported, explained("0", "accuracy")))

    for fact in (
        "commit       epoch 1: abc\n",
        "commit       epoch 2: abc+changes (3 changed lines; print them with --diff)\n",
        "hardware     epoch 1: box0, CPU\n",
        "hardware     epoch 2: box1, NVIDIA H200, driver 580.1\n",
        "on box0: interrupted\n",
        "# epoch 1, on CPU; interrupt it after epoch 1\n      git checkout --force abc\n",
        "--attempt 2 --diff > changes.patch\n      git checkout --force abc\n      git apply",
    ):
        assert fact in text
    assert cell["runs"][0]["parts"] == [
        {"epochs": [1, 1], "attempt": 1},
        {"epochs": [2, 2], "attempt": 2},
    ]
    assert cell["runs"][0]["attempts"][1]["changed_lines"] == 3


def test_changes_without_a_stored_patch_are_mentioned(explained, reported, store):
    run = reported.runs[0]
    store.queue([run])
    store.start(run, replace(CHANGED, git_diff=None))

    assert "commit       abc+changes (the changes were too large to store)" in explanation_text(
        reported, explained("0", "cra_1")
    )


def test_the_json_has_the_cell_and_its_runs_without_the_patch(explained, reported, store):
    run = reported.runs[0]
    finish(store, run, 0.0)
    store.start(run, CHANGED)
    (cell, _) = json.loads(explanation_json(reported, explained("0", "accuracy")))
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
    assert count_changed_lines(PATCH) == 3
