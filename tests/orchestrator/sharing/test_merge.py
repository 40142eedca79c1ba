import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import asdict, replace

import pytest
from sqlalchemy import text, update

from aol.catalog import DATASETS
from orchestrator.errors import StoreError
from orchestrator.sharing.consistency import Relation, RunRecord, compare_records, find_conflict
from orchestrator.sharing.merge import MergeResult, merge_stores, summarize_merge
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Checkpoint, Status, Store
from orchestrator.store.models import RunRow
from tests.support.shell import TINY, UNREACHABLE_MLFLOW, Shell, statuses_of
from tests.support.stores import ORIGIN, spawn

KNOWN = DATASETS["digits"].fingerprint
HERE = replace(ORIGIN, data_fingerprint=KNOWN)
NOW = {1: {"accuracy": 0.5}}
THEN = {1: {"accuracy": 0.5}, 2: {"accuracy": 0.6}}


def train(store, run, epochs=3, *, status=Status.DONE, margins=b"\x00\x00\x80\x3f", shift=0.0):
    """
    Train a run for a number of epochs.
    """
    store.queue([run])
    store.start(run, HERE)
    for epoch in range(1, epochs + 1):
        store.record(run.key, epoch, {"accuracy": epoch / 10 + shift})
    ended = status in (Status.DONE, Status.UNSOUND)
    store.finish(run.key, status, margins=margins if ended else None)


@pytest.fixture
def other(tmp_path):
    opened = Store(tmp_path / "other" / "store.db")
    yield opened
    opened.close()


def results(merged):
    return [one.result for one in merged]


# Two records of a run


def record(status, epochs, margins=None):
    return RunRecord(Status(status), epochs, margins)


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (record("failed", NOW), record("interrupted", NOW), Relation.SAME),
        (record("failed", NOW), record("failed", THEN), Relation.LONGER),
        (record("failed", THEN), record("failed", NOW), Relation.SHORTER),
        (record("failed", NOW), record("diverged", NOW), Relation.LONGER),
        (record("done", NOW, b"a"), record("failed", NOW), Relation.SHORTER),
        (record("done", NOW), record("done", NOW, b"a"), Relation.LONGER),
        (record("done", NOW, b"a"), record("done", NOW, b"a"), Relation.SAME),
    ],
)
def test_records_are_compared_by_their_completeness(here, there, expected):
    assert compare_records(here, there) is expected


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [
        (
            record("failed", NOW),
            record("failed", {1: {"accuracy": 0.4}}),
            "different metrics in epoch 1",
        ),
        (
            record("failed", NOW),
            record("failed", {1: {"accuracy": 0.5, "cra_1": 0.1}}),
            "different metrics in epoch 1",
        ),
        (record("done", NOW, b"a"), record("unsound", NOW, b"a"), "a different outcome"),
        (record("done", NOW, b"a"), record("done", NOW, b"b"), "different margins"),
        (record("diverged", NOW), record("interrupted", THEN), "a different history"),
    ],
)
def test_conflicting_records_are_in_conflict_in_either_order(here, there, reason):
    assert find_conflict(here, there) == find_conflict(there, here) == reason
    assert compare_records(here, there) is compare_records(there, here) is Relation.CONFLICT


# Merging stores


def test_every_run_is_imported_once(store, other, make_run):
    runs = [make_run(1), make_run(2), make_run(1, seed=1001)]
    for run in runs:
        train(other, run)
    first = merge_stores(other, store)
    before = store.runs()
    second = merge_stores(other, store)

    assert results(first) == [MergeResult.IMPORTED] * 3
    assert str(first[0]) == "run 1 AOL-Small, seed 1: imported: done, 3 epochs"
    assert results(second) == [MergeResult.UNCHANGED] * 3
    assert summarize_merge(second) == "3 runs there: 3 unchanged"
    assert store.runs() == before == other.runs()


def test_runs_of_this_store_alone_are_kept(store, other, make_run):
    train(store, make_run(1))
    train(other, make_run(2))
    merge_stores(other, store)

    assert [run.run_id for run in store.runs()] == [1, 2]


def test_the_more_complete_record_wins_in_either_store(store, other, make_run):
    behind, ahead = make_run(1), make_run(2)
    train(store, behind, 2, status=Status.INTERRUPTED)
    train(other, behind, 3)
    train(store, ahead, 3)
    train(other, ahead, 2, status=Status.INTERRUPTED)
    merged = merge_stores(other, store)

    assert [str(one) for one in merged] == [
        "run 1 AOL-Small, seed 1: imported: done, 3 epochs; replaces interrupted after epoch 2",
        "run 2 AOL-Small, seed 2: kept: done after epoch 3 here, interrupted after epoch 2 there",
    ]
    assert [(run.status, run.epoch) for run in store.runs()] == [(Status.DONE, 3)] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shift": 0.01}, "different metrics in epoch 1"),
        ({"margins": b"\x00\x00\x00\x00"}, "different margins"),
        ({"status": Status.UNSOUND}, "a different outcome"),
    ],
)
def test_a_conflict_is_rejected_without_replace(store, other, make_run, changes, reason):
    disputed, fine = make_run(1), make_run(2)
    train(store, disputed)
    train(other, disputed, **changes)
    train(other, fine)
    before = store.metrics(disputed.key)
    rejected = merge_stores(other, store)
    between = store.metrics(disputed.key)
    replaced = merge_stores(other, store, replace=True)

    assert results(rejected) == [MergeResult.REJECTED, MergeResult.IMPORTED]
    assert f"{disputed.key} has {reason}: done after epoch 3 here, " in str(rejected[0])
    assert between == before
    assert results(replaced) == [MergeResult.IMPORTED, MergeResult.UNCHANGED]
    assert store.metrics(disputed.key) == other.metrics(disputed.key)
    assert store.margins(disputed.key) == other.margins(disputed.key)
    assert [run.status for run in store.runs()] == [run.status for run in other.runs()]


def test_replace_does_not_import_a_less_complete_record(store, other, make_run):
    train(store, make_run(1))
    train(other, make_run(1), 2, status=Status.INTERRUPTED)

    assert results(merge_stores(other, store, replace=True)) == [MergeResult.KEPT]


def test_a_run_in_training_in_either_store_is_skipped(store, other, make_run):
    here, there = make_run(1), make_run(2)
    for trains, waits in ((store, other), (other, store)):
        run = here if trains is store else there
        trains.queue([run])
        trains.start(run, HERE)
        train(waits, run)
    merged = merge_stores(other, store)

    assert [str(one) for one in merged] == [
        "run 1 AOL-Small, seed 1: skipped: it is in training here",
        "run 2 AOL-Small, seed 2: skipped: it is in training there",
    ]


def test_a_run_of_a_dead_driver_is_imported_as_interrupted(store, other, make_run):
    run = make_run(1)
    other.queue([run])
    other.start(run, HERE)
    other.record(run.key, 1, {"accuracy": 0.1})
    other.close()
    (outcome,) = merge_stores(other, store)
    (found,) = store.runs()

    assert str(outcome).endswith("imported: interrupted, 1 epoch")
    assert found.status is Status.INTERRUPTED
    assert [attempt.outcome for attempt in store.attempts(run.key)] == ["interrupted"]
    assert results(merge_stores(other, store)) == [MergeResult.UNCHANGED]


def test_checkpoints_keep_their_locations(store, other, make_run):
    run = make_run(1)
    train(other, run, 2, status=Status.INTERRUPTED)
    other.add_checkpoint(run.key, Checkpoint(2, "/mnt/theirs/ray/checkpoint_2"))
    merge_stores(other, store)
    (found,) = store.runs()

    assert found.checkpoints == (Checkpoint(2, "/mnt/theirs/ray/checkpoint_2"),)


def test_the_mlflow_run_of_this_store_is_kept_and_updated(store, other, make_run):
    first, second = make_run(1), make_run(2)
    train(store, first, 2, status=Status.INTERRUPTED)
    store.set_mlflow_run(first.key, "ours")
    for run in (first, second):
        train(other, run)
        other.set_mlflow_run(run.key, "theirs")
        other.set_mlflow_status(run.key, Status.DONE)
    merge_stores(other, store)

    assert [run.mlflow_run_id for run in store.runs()] == ["ours", "theirs"]
    assert [run.mlflow_status for run in store.runs()] == [None, None]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("UPDATE runs SET config = '{}'", "its settings are damaged: KeyError('optimizer')"),
        ("UPDATE runs SET seed = 7", "its settings belong to the key "),
        ("UPDATE runs SET epochs = 2", "has 2 epochs, its settings have 3"),
        (
            "DELETE FROM epochs WHERE epoch = 2",
            "is done, but of 3 epochs, number 2 is not recorded",
        ),
        ("UPDATE runs SET data_fingerprint = 'd-d'", "was trained on other images than digits"),
    ],
)
def test_a_run_that_contradicts_itself_is_rejected_even_with_replace(
    store, other, make_run, sql, reason
):
    train(other, make_run(1))
    with other.engine.begin() as connection:
        connection.execute(text(sql))
    merged = merge_stores(other, store) + merge_stores(other, store, replace=True)

    assert results(merged) == [MergeResult.REJECTED] * 2
    assert reason in str(merged[0])
    assert store.runs() == []


def test_a_run_whose_key_has_other_settings_here_is_rejected_even_with_replace(
    store, other, make_run
):
    run = make_run(1)
    for one in (other, store):
        train(one, run)
    forged = asdict(replace(run.train, batch_size=10))
    with store.engine.begin() as connection:
        connection.execute(update(RunRow).values(config=forged))
    merged = merge_stores(other, store, replace=True)

    assert results(merged) == [MergeResult.REJECTED]
    assert f"run {run.key} has other settings in the store (batch_size 10 → 50)" in str(merged[0])


def test_a_store_with_unreadable_records_is_a_one_line_error(store, other, make_run):
    train(other, make_run(1))
    with other.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET config = 'x'"))
    with pytest.raises(StoreError, match=r"store .* is damaged: a stored value is not JSON: "):
        merge_stores(other, store)

    assert store.runs() == []


@pytest.mark.parametrize(
    "change",
    ["metrics SET value = 'x'", "epochs SET recorded_at = 'x'", "attempts SET from_epoch = 'x'"],
)
def test_a_run_with_a_damaged_record_is_rejected_and_the_others_are_imported(
    store, other, make_run, change
):
    damaged, intact = make_run(1), make_run(2)
    train(other, damaged)
    train(other, intact)
    with other.engine.begin() as connection:
        connection.execute(text(f"UPDATE {change} WHERE key = '{damaged.key}'"))
    merged = merge_stores(other, store)

    assert results(merged) == [MergeResult.REJECTED, MergeResult.IMPORTED]
    assert "is stored where" in str(merged[0])
    assert [run.key for run in store.runs()] == [intact.key]


# The command


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "x.yaml").write_text(TINY, encoding="utf-8")
    return SpecFile(tmp_path / "x.yaml").experiment("demo")


@pytest.mark.usefixtures("sketched_figures")
def test_merge_lists_the_imported_runs_and_sends_them_to_mlflow(
    tmp_path, other, experiment, empty_mlflow
):
    for run in experiment.runs:
        train(other, run)
    shell = Shell(tmp_path / "here", tmp_path)
    shutil.copy(empty_mlflow, shell.folder / "mlflow.db")
    before = (tmp_path / "other" / "store.db").read_bytes()
    first, second = shell("merge", "../other/store.db"), shell("merge", "../other/store.db")
    with sqlite3.connect(tmp_path / "here" / "mlflow.db") as mlflow:
        (count,) = mlflow.execute("SELECT count(*) FROM tags WHERE key = 'run_id'").fetchone()
    mlflow.close()
    cells = shell("query", "SELECT count(*) AS n FROM v_cells WHERE seeds = 1", "--json")

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.splitlines() == [
        "run 0 AOL-Small, seed 0: imported: done, 3 epochs",
        "run 11 AOL-Conv, seed 11: imported: done, 3 epochs",
        "2 runs there: 2 imported",
    ]
    assert second.stdout.splitlines()[-1] == "2 runs there: 2 unchanged"
    assert count == 2
    assert '"n": 2' in cells.stdout
    assert (tmp_path / "other" / "store.db").read_bytes() == before


@pytest.mark.usefixtures("sketched_figures")
def test_merge_imports_the_rest_and_exits_with_1_after_a_conflict(
    tmp_path, other, experiment, empty_mlflow
):
    shell = Shell(tmp_path / "here", tmp_path)
    shutil.copy(empty_mlflow, shell.folder / "mlflow.db")
    ours = Store(tmp_path / "here" / "results" / "store.db")
    first, second = experiment.runs
    train(ours, first)
    train(other, first, shift=0.01)
    train(other, second)
    ours.close()
    done = shell("merge", tmp_path / "other" / "store.db")

    assert done.returncode == 1
    assert "run 11 AOL-Conv, seed 11: imported" in done.stdout
    assert done.stderr == (
        f"Error: run 0 AOL-Small, seed 0: rejected: {first.key} has different metrics in epoch 1: "
        "done after epoch 3 here, done after epoch 3 there; pass --replace to import it anyway\n"
    )
    assert shell("merge", tmp_path / "other" / "store.db", "--replace").returncode == 0


def test_merge_without_mlflow_imports_all_and_exits_with_1(tmp_path, other, experiment):
    train(other, experiment.runs[0])
    shell = Shell(tmp_path / "here", tmp_path)
    shell.environment |= UNREACHABLE_MLFLOW
    done = shell("merge", tmp_path / "other" / "store.db")

    assert done.returncode == 1
    assert done.stderr.startswith("Error: MLflow at http://127.0.0.1:9: ")
    assert "The store is complete; `sync` sends it to MLflow." in done.stderr
    assert statuses_of(shell.folder) == {0: "done"}


def test_merge_creates_no_store_if_the_other_one_is_missing(tmp_path):
    shell = Shell(tmp_path / "here", tmp_path)
    done = shell("merge", "nowhere.db")

    assert done.returncode == 1
    assert done.stderr == f"Error: there is no store at {tmp_path / 'here' / 'nowhere.db'}\n"
    assert not (tmp_path / "here" / "results").exists()


def test_merge_does_not_wait_for_a_driver(tmp_path, other):
    shell = Shell(tmp_path / "here", tmp_path)
    ours = Store(tmp_path / "here" / "results" / "store.db", exclusive=True)
    done = shell("merge", tmp_path / "other" / "store.db")
    ours.close()

    assert done.returncode == 1
    assert "another driver is writing to" in done.stderr


MERGE = """
    import sys
    from orchestrator.sharing.merge import merge_stores
    from orchestrator.store import Store, snapshot
    with snapshot(sys.argv[1]) as other:
        store = Store(sys.argv[2], exclusive=True)
        store.recover()
        merge_stores(other, store)
"""


@pytest.mark.slow
def test_a_killed_merge_is_completed_by_the_next_one(tmp_path, store, other, make_run):
    for number in range(1, 61):
        train(other, make_run(number, epochs=10), 10)
    path = tmp_path / "here" / "store.db"
    process = spawn(MERGE, tmp_path / "other" / "store.db", path)
    try:
        until = time.monotonic() + 60
        while count_runs(path) < 5 and time.monotonic() < until:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    finally:
        stop_spawned(process)
    ours = Store(path, exclusive=True)
    halfway = ours.runs()
    with ours.engine.connect() as connection:
        checked = connection.execute(text("PRAGMA integrity_check")).scalar()
    merge_stores(other, ours)

    assert checked == "ok"
    assert 5 <= len(halfway) < 60
    assert all((run.status, run.recorded) == (Status.DONE, 10) for run in halfway)
    assert ours.runs() == [replace(run, mlflow_status=None) for run in other.runs()]
    ours.close()


def count_runs(path):
    """
    Return the number of runs in a store that another process writes.
    """
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            (count,) = connection.execute("SELECT count(*) FROM runs").fetchone()
    except sqlite3.OperationalError:  # not made yet
        return 0
    connection.close()
    return count


def stop_spawned(process):
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_names_from_another_store_forge_no_line(trained, tmp_path):
    shell, other = trained.copy(tmp_path / "here"), trained.copy(tmp_path / "there")
    forged = "x\nError: forged \x1b[2J\x9b[bold]\u202e"
    with closing(sqlite3.connect(other.folder / "results/store.db")) as database, database:
        database.execute(
            "UPDATE runs SET name = ?, host = ?, device = ?, git_commit = ?, error = ?, "
            "packages = ?",
            [*[forged] * 5, json.dumps({forged: forged})],
        )
    (shell.folder / "results/store.db").unlink()

    done = [shell("merge", other.folder / "results/store.db")]
    done += [shell(*words) for words in (["status"], ["status", "--all"], ["explain", "0"])]
    done += [shell(*words) for words in (["report"], ["query", "SELECT * FROM runs"])]
    done += [shell("query", "SELECT name, host FROM runs", "--json"), shell("status", "--json")]

    for one in done:
        assert one.returncode == 0, one.stderr
        text = one.stdout + one.stderr
        assert text.replace("\n", "").isprintable()
        assert "\nError" not in text
    assert r"run 0 x\nError: forged \x1b[2J\x9b[bold]\u202e, seed 0: imported" in done[0].stdout
