import os
import signal
import sqlite3
import time
from dataclasses import replace

import pytest
from sqlalchemy import text

from aol.catalog import DATASETS
from orchestrator.errors import RecordError
from orchestrator.sharing.consistency import History, Relation, find_conflict, relation
from orchestrator.sharing.merge import MergeResult, merge_stores, summarize_merge
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Checkpoint, Status, Store
from tests.support.shell import TINY, Shell
from tests.support.stores import ORIGIN, spawn

KNOWN = DATASETS["digits"].fingerprint
HERE = replace(ORIGIN, data_fingerprint=KNOWN)
NOW = {1: {"accuracy": 0.5}}
THEN = {1: {"accuracy": 0.5}, 2: {"accuracy": 0.6}}


def train(store, run, epochs=3, *, status=Status.DONE, margins=b"\x00\x00\x80\x3f", shift=0.0):
    """
    A run as it stands after so many epochs.
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


def fates(outcomes):
    return [outcome.fate for outcome in outcomes]


# Which of two histories


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (None, History(Status.RUNNING, {}, None), Relation.LONGER),
        (History(Status.FAILED, NOW, None), History(Status.INTERRUPTED, NOW, None), Relation.SAME),
        (History(Status.FAILED, NOW, None), History(Status.FAILED, THEN, None), Relation.LONGER),
        (History(Status.FAILED, THEN, None), History(Status.FAILED, NOW, None), Relation.SHORTER),
        (History(Status.FAILED, NOW, None), History(Status.DIVERGED, NOW, None), Relation.LONGER),
        (History(Status.DONE, NOW, b"a"), History(Status.FAILED, NOW, None), Relation.SHORTER),
        (History(Status.DONE, NOW, None), History(Status.DONE, NOW, b"a"), Relation.LONGER),
        (History(Status.DONE, NOW, b"a"), History(Status.DONE, NOW, b"a"), Relation.SAME),
    ],
)
def test_the_history_that_tells_more_is_the_longer(here, there, expected):
    assert relation(here, there) is expected


@pytest.mark.parametrize(
    ("here", "there", "reason"),
    [
        (
            History(Status.FAILED, NOW, None),
            History(Status.FAILED, {1: {"accuracy": 0.4}}, None),
            "other numbers in epoch 1",
        ),
        (
            History(Status.FAILED, NOW, None),
            History(Status.FAILED, {1: {"accuracy": 0.5, "cra_1": 0.1}}, None),
            "other numbers in epoch 1",
        ),
        (History(Status.DONE, NOW, b"a"), History(Status.UNSOUND, NOW, b"a"), "another end"),
        (History(Status.DONE, NOW, b"a"), History(Status.DONE, NOW, b"b"), "other margins"),
        (
            History(Status.DIVERGED, NOW, None),
            History(Status.INTERRUPTED, THEN, None),
            "another course",
        ),
    ],
)
def test_histories_that_cannot_both_be_true_contradict_each_other(here, there, reason):
    assert find_conflict(here, there) == find_conflict(there, here) == reason
    assert relation(here, there) is relation(there, here) is Relation.OTHER


# What is taken


def test_every_run_is_taken_once(store, other, make_run):
    runs = [make_run(1), make_run(2), make_run(1, seed=1001)]
    for run in runs:
        train(other, run)
    first = merge_stores(other, store)
    before = store.runs()
    second = merge_stores(other, store)

    assert fates(first) == [MergeResult.TAKEN] * 3
    assert str(first[0]) == "run 1 AOL-Small, seed 1: taken: done, 3 epochs"
    assert fates(second) == [MergeResult.KNOWN] * 3
    assert summarize_merge(second) == "nothing to take"
    assert store.runs() == before == other.runs()


def test_what_is_only_here_stays(store, other, make_run):
    train(store, make_run(1))
    train(other, make_run(2))
    merge_stores(other, store)

    assert [run.run_id for run in store.runs()] == [1, 2]


def test_the_run_that_is_further_wins_on_either_side(store, other, make_run):
    behind, ahead = make_run(1), make_run(2)
    train(store, behind, 2, status=Status.INTERRUPTED)
    train(other, behind, 3)
    train(store, ahead, 3)
    train(other, ahead, 2, status=Status.INTERRUPTED)
    outcomes = merge_stores(other, store)

    assert [str(outcome) for outcome in outcomes] == [
        "run 1 AOL-Small, seed 1: taken: done, 3 epochs, in place of interrupted after epoch 2",
        "run 2 AOL-Small, seed 2: further here: done after epoch 3, and interrupted after epoch 2 "
        "there",
    ]
    assert [(run.status, run.epoch) for run in store.runs()] == [(Status.DONE, 3)] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shift": 0.01}, "other numbers in epoch 1"),
        ({"margins": b"\x00\x00\x00\x00"}, "other margins"),
        ({"status": Status.UNSOUND}, "another end"),
    ],
)
def test_a_conflict_is_refused_until_it_replaces(store, other, make_run, changes, reason):
    disputed, fine = make_run(1), make_run(2)
    train(store, disputed)
    train(other, disputed, **changes)
    train(other, fine)
    before = store.metrics(disputed.key)
    refused = merge_stores(other, store)
    between = store.metrics(disputed.key)
    replaced = merge_stores(other, store, replace=True)

    assert fates(refused) == [MergeResult.REFUSED, MergeResult.TAKEN]
    assert f"{disputed.key} has {reason}: done after epoch 3 here, " in str(refused[0])
    assert between == before
    assert fates(replaced) == [MergeResult.TAKEN, MergeResult.KNOWN]
    assert store.metrics(disputed.key) == other.metrics(disputed.key)
    assert store.margins(disputed.key) == other.margins(disputed.key)
    assert [run.status for run in store.runs()] == [run.status for run in other.runs()]


def test_replace_does_not_take_what_is_shorter_there(store, other, make_run):
    train(store, make_run(1))
    train(other, make_run(1), 2, status=Status.INTERRUPTED)

    assert fates(merge_stores(other, store, replace=True)) == [MergeResult.FURTHER]


def test_a_run_in_training_is_left_out_on_either_side(store, other, make_run):
    here, there = make_run(1), make_run(2)
    for trains, waits in ((store, other), (other, store)):
        run = here if trains is store else there
        trains.queue([run])
        trains.start(run, HERE)
        train(waits, run)
    outcomes = merge_stores(other, store)

    assert [str(outcome) for outcome in outcomes] == [
        "run 1 AOL-Small, seed 1: left out: it is in training here",
        "run 2 AOL-Small, seed 2: left out: it is in training there",
    ]


def test_a_run_whose_driver_is_gone_comes_as_interrupted(store, other, make_run):
    run = make_run(1)
    other.queue([run])
    other.start(run, HERE)
    other.record(run.key, 1, {"accuracy": 0.1})
    with other.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET heartbeat_at = '2026-01-01T00:00:00+00:00'"))
    (outcome,) = merge_stores(other, store)
    (found,) = store.runs()

    assert str(outcome).endswith("taken: interrupted, 1 epoch")
    assert found.status is Status.INTERRUPTED
    assert [attempt.outcome for attempt in store.attempts(run.key)] == ["interrupted"]
    assert fates(merge_stores(other, store)) == [MergeResult.KNOWN]


def test_checkpoints_are_noted_where_they_lie(store, other, make_run):
    run = make_run(1)
    train(other, run, 2, status=Status.INTERRUPTED)
    other.saved(run.key, Checkpoint(2, "/mnt/theirs/ray/checkpoint_2"))
    merge_stores(other, store)
    (found,) = store.runs()

    assert found.checkpoints == (Checkpoint(2, "/mnt/theirs/ray/checkpoint_2"),)


def test_mlflow_is_told_anew_and_goes_on_with_the_run_it_shows(store, other, make_run):
    first, second = make_run(1), make_run(2)
    train(store, first, 2, status=Status.INTERRUPTED)
    store.link(first.key, "ours")
    for run in (first, second):
        train(other, run)
        other.link(run.key, "theirs")
        other.shown(run.key, Status.DONE)
    merge_stores(other, store)

    assert [run.mlflow_run_id for run in store.runs()] == ["ours", "theirs"]
    assert [run.mlflow_status for run in store.runs()] == [None, None]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("UPDATE runs SET config = '{}'", "its settings are damaged: KeyError('optimizer')"),
        ("UPDATE runs SET seed = 7", "its settings make it "),
        ("UPDATE runs SET epochs = 2", "has 2 epochs, its settings say 3"),
        ("DELETE FROM epochs WHERE epoch = 2", "is done with 2 of 3 epochs recorded"),
        ("UPDATE runs SET data_fingerprint = 'd-d'", "was trained on other images than digits"),
    ],
)
def test_a_run_that_is_not_what_its_key_says_is_refused_in_any_case(
    store, other, make_run, sql, reason
):
    train(other, make_run(1))
    with other.engine.begin() as connection:
        connection.execute(text(sql))
    outcomes = merge_stores(other, store) + merge_stores(other, store, replace=True)

    assert fates(outcomes) == [MergeResult.REFUSED] * 2
    assert reason in str(outcomes[0])
    assert store.runs() == []


def test_a_store_whose_records_cannot_be_read_is_refused_in_one_line(store, other, make_run):
    train(other, make_run(1))
    with other.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET config = 'x'"))
    with pytest.raises(RecordError, match=r"the other store is damaged: .*; nothing was taken"):
        merge_stores(other, store)

    assert store.runs() == []


# The command


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "x.yaml").write_text(TINY, encoding="utf-8")
    return SpecFile(tmp_path / "x.yaml").experiment("demo")


def test_the_command_says_what_it_took_and_fills_mlflow(tmp_path, other, experiment):
    for run in experiment.runs:
        train(other, run)
    shell = Shell(tmp_path / "here", tmp_path)
    before = (tmp_path / "other" / "store.db").read_bytes()
    first, second = shell("merge", "../other/store.db"), shell("merge", "../other/store.db")
    with sqlite3.connect(tmp_path / "here" / "mlflow.db") as mlflow:
        (count,) = mlflow.execute("SELECT count(*) FROM runs").fetchone()
    mlflow.close()
    cells = shell("query", "SELECT count(*) AS n FROM v_cells WHERE seeds = 1", "--json")

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert first.stdout.splitlines() == [
        "run 0 AOL-Small, seed 0: taken: done, 3 epochs",
        "run 11 AOL-Conv, seed 11: taken: done, 3 epochs",
        "2 taken of 2 runs there",
    ]
    assert second.stdout.splitlines()[-1] == "nothing to take of 2 runs there"
    assert count == 2
    assert '"n": 2' in cells.stdout
    assert (tmp_path / "other" / "store.db").read_bytes() == before


def test_the_command_takes_the_rest_and_names_conflicts_with_exit_1(tmp_path, other, experiment):
    shell = Shell(tmp_path / "here", tmp_path)
    ours = Store(tmp_path / "here" / "results" / "store.db")
    first, second = experiment.runs
    train(ours, first)
    train(other, first, shift=0.01)
    train(other, second)
    ours.close()
    done = shell("merge", tmp_path / "other" / "store.db")

    assert done.returncode == 1
    assert "run 11 AOL-Conv, seed 11: taken" in done.stdout
    assert done.stderr == (
        f"Error: run 0 AOL-Small, seed 0: refused: {first.key} has other numbers in epoch 1: done "
        "after epoch 3 here, done after epoch 3 there; --replace takes the other store's\n"
    )
    assert shell("merge", tmp_path / "other" / "store.db", "--replace").returncode == 0


def test_the_command_makes_no_store_if_there_is_none_to_take_from(tmp_path):
    shell = Shell(tmp_path / "here", tmp_path)
    done = shell("merge", "nowhere.db")

    assert done.returncode == 1
    assert done.stderr == f"Error: there is no store at {tmp_path / 'here' / 'nowhere.db'}\n"
    assert not (tmp_path / "here" / "results").exists()


def test_the_command_waits_for_no_driver_that_has_the_store(tmp_path, other):
    shell = Shell(tmp_path / "here", tmp_path)
    ours = Store(tmp_path / "here" / "results" / "store.db", exclusive=True)
    done = shell("merge", tmp_path / "other" / "store.db")
    ours.close()

    assert done.returncode == 1
    assert "another `run` is writing to" in done.stderr


MERGE = """
    import sys
    from orchestrator.sharing.merge import merge
    from orchestrator.store import Store, snapshot
    with snapshot(sys.argv[1]) as other:
        store = Store(sys.argv[2], exclusive=True)
        store.recover()
        merge(other, store)
"""


def test_a_merge_that_is_killed_halfway_is_completed_by_the_next(tmp_path, store, other, make_run):
    for number in range(1, 101):
        train(other, make_run(number, epochs=20), 20)
    path = tmp_path / "here" / "store.db"
    process = spawn(MERGE, tmp_path / "other" / "store.db", path)
    try:
        until = time.monotonic() + 60
        while taken_by(path) < 20 and time.monotonic() < until:
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
    assert 20 <= len(halfway) < 100
    assert all((run.status, run.recorded) == (Status.DONE, 20) for run in halfway)
    assert ours.runs() == [replace(run, mlflow_status=None) for run in other.runs()]
    ours.close()


def taken_by(path):
    """
    How many runs a store has by now, seen from outside.
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
