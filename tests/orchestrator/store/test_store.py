import math
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import NoResultFound

from orchestrator.errors import QueryError
from orchestrator.store import Checkpoint, Epoch, MetricRange, Status, Store
from orchestrator.store.models import Base, run_tables
from tests.support.stores import ORIGIN, recorded_statements

VALUES = {"train_loss": 0.5, "accuracy": 0.25}


@pytest.fixture
def store(location):
    store = Store(location)
    yield store
    store.close()


@pytest.fixture
def run(make_run):
    return make_run(7)


@pytest.fixture
def running(store, run):
    """
    A started run of this process.
    """
    store.queue([run])
    store.start(run, ORIGIN)
    return run


def only(store):
    (found,) = store.runs()
    return found


def attempts(store):
    with store.engine.connect() as connection:
        rows = connection.execute(text("SELECT from_epoch, outcome FROM attempts ORDER BY id"))
        return [tuple(row) for row in rows]


# The course of a run


def test_a_queued_run_is_pending_with_its_settings(store, run):
    store.queue([run])
    found = only(store)

    assert (found.key, found.run_id, found.name, found.profile) == (run.key, 7, "AOL-Small", "demo")
    assert (found.seed, found.digest, found.epochs) == (7, run.train.digest(), 3)
    assert (found.status, found.epoch, found.recorded) == (Status.PENDING, 0, 0)
    assert found.config["model"]["kind"] == "patchwise"
    assert found.config["optimizer"]["drops"] == [0.9, 0.99, 0.999]
    assert (found.checkpoints, found.started_at) == ((), None)
    assert found.alive


def test_a_run_from_the_queue_to_its_end(store, run):
    store.queue([run])
    store.start(run, ORIGIN)
    store.set_placement(run.key, "host", "CPU, 2 threads", 0)
    started = only(store)
    for epoch in (1, 2, 3):
        store.record(run.key, epoch, {"train_loss": 1 / epoch})
        store.add_checkpoint(run.key, Checkpoint(epoch, f"/c/{epoch}"))
    trained = only(store)
    store.finish(run.key, Status.DONE, margins=struct.pack("<2f", 0.5, -0.25))
    done = only(store)

    assert (started.status, started.host, started.device) == (
        Status.RUNNING,
        "host",
        "CPU, 2 threads",
    )
    assert started.alive
    assert (started.git_commit, started.packages, started.data_fingerprint) == (
        "abc",
        {"torch": "2.0"},
        "d-d",
    )
    assert (trained.epoch, trained.recorded) == (3, 3)
    assert trained.checkpoints == (Checkpoint(3, "/c/3"), Checkpoint(2, "/c/2"))
    assert (done.status, done.error, done.alive) == (Status.DONE, None, False)
    assert done.started_at <= done.finished_at
    assert store.metrics(run.key) == {
        1: {"train_loss": 1},
        2: {"train_loss": 1 / 2},
        3: {"train_loss": 1 / 3},
    }
    assert struct.unpack("<2f", store.margins(run.key)) == (0.5, -0.25)
    assert attempts(store) == [(0, "done")]


def test_times_are_utc(store, running):
    started = datetime.fromisoformat(only(store).started_at)

    assert started.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - started) < timedelta(seconds=60)


def test_a_failed_run_keeps_its_error_until_it_starts_again(store, running):
    store.finish(running.key, Status.FAILED, error="out of memory")
    failed = only(store)
    store.start(running, ORIGIN)
    again = only(store)

    assert (failed.status, failed.error) == (Status.FAILED, "out of memory")
    assert (again.status, again.error, again.finished_at) == (Status.RUNNING, None, None)
    assert again.started_at == failed.started_at


def test_every_attempt_is_kept_with_its_first_epoch_and_outcome(store, running):
    store.record(running.key, 1, VALUES)
    store.add_checkpoint(running.key, Checkpoint(1, "/c/1"))
    store.finish(running.key, Status.FAILED)
    store.start(running, ORIGIN)
    store.start(running, ORIGIN)  # its worker was lost
    store.finish(running.key, Status.DONE)

    assert attempts(store) == [(0, "failed"), (1, "interrupted"), (1, "done")]


def test_an_attempt_has_the_epoch_from_which_its_worker_continued(store, running):
    """
    Here the worker could not read the newest checkpoint.
    """
    store.record(running.key, 1, VALUES)
    store.add_checkpoint(running.key, Checkpoint(1, "/c/1"))
    store.start(running, ORIGIN)
    store.set_placement(running.key, "host", "CPU", 0)

    assert attempts(store) == [(0, "interrupted"), (0, None)]


def test_a_run_that_never_started_can_be_finished(store, run):
    """
    Ray can lose a worker first.
    """
    store.queue([run])
    store.finish(run.key, Status.FAILED, error="its worker was lost")

    assert (only(store).status, only(store).started_at) == (Status.FAILED, None)
    assert only(store).error == "its worker was lost"


def test_queueing_again_keeps_the_results(store, running):
    store.record(running.key, 1, VALUES)
    store.finish(running.key, Status.INTERRUPTED)
    renamed = running.model_copy(update={"name": "New name", "profile": "other"})
    store.queue([renamed])
    found = only(store)

    assert (found.status, found.name, found.profile) == (Status.PENDING, "New name", "other")
    assert (found.epoch, found.git_commit) == (1, "abc")


def test_queueing_leaves_a_finished_run_finished(store, running):
    store.finish(running.key, Status.DONE)
    store.queue([running])

    assert only(store).status is Status.DONE


def test_runs_are_ordered_by_id_and_seed(store, make_run):
    runs = [make_run(2), make_run(1, seed=1001), make_run(1), make_run(10)]
    store.queue(runs)

    assert [(found.run_id, found.seed) for found in store.runs()] == [
        (1, 1),
        (1, 1001),
        (2, 2),
        (10, 10),
    ]
    assert [found.run_id for found in store.runs([runs[3].key, "nothing"])] == [10]
    assert store.runs([]) == []


def test_runs_are_filtered_by_the_given_conditions(store, make_run):
    runs = [make_run(1), make_run(1, epochs=9), make_run(2, profile="paper"), make_run(3)]
    store.queue(runs)
    store.finish(runs[3].key, Status.FAILED)

    def found(**conditions):
        return [run.key for run in store.runs(**conditions)]

    assert found(ids=[1, 3]) == [runs[0].key, runs[1].key, runs[3].key]
    assert found(ids=[1], digests=[runs[1].train.digest()]) == [runs[1].key]
    assert found(profiles=["paper"]) == [runs[2].key]
    assert found(statuses=[Status.FAILED, Status.DONE]) == [runs[3].key]
    assert found(keys=[runs[0].key], ids=[2]) == found(ids=[]) == []


def test_more_runs_can_be_selected_than_a_statement_can_have_values(store, running):
    """
    SQLite allows 32,766 of them, PostgreSQL 65,535.
    """
    store.record(running.key, 1, VALUES)
    many = range(-70_000, 0)
    keys = [*map(str, many), running.key]

    assert [run.key for run in store.runs(keys)] == [running.key]
    assert [run.key for run in store.runs(ids=[*many, running.id])] == [running.key]
    assert list(store.latest_metrics(keys)) == list(store.last_recorded_at(keys)) == [running.key]
    store.finish(running.key, Status.DONE)
    assert list(store.final(keys, epoch=1)) == [running.key]


@pytest.mark.parametrize("chunk", [2, 5000])
def test_runs_keep_their_order_and_conditions_in_chunks(store, make_run, monkeypatch, chunk):
    monkeypatch.setattr("orchestrator.store.reader.VALUES_PER_QUERY", chunk)
    runs = [make_run(number) for number in range(5)]
    store.queue(runs[::-1])
    keys, ids = [run.key for run in runs], [run.id for run in runs]

    assert [run.key for run in store.runs([*keys[::-1], *keys], ids=ids)] == keys
    assert [run.key for run in store.runs(keys, ids=ids[2:])] == keys[2:]


def statements_for(store, work):
    with recorded_statements(store) as sent:
        work()
    return [statement for statement, _ in sent]


@pytest.mark.parametrize("already_stored", [False, True])
def test_queueing_many_runs_takes_as_many_statements_as_queueing_few(
    store, make_run, already_stored
):
    few, many = ([make_run(number) for number in ids] for ids in (range(3), range(3, 30)))
    store.queue(few + many if already_stored else [])  # from then on this process is a driver
    counts = [
        len(statements_for(store, lambda runs=runs: store.queue(runs))) for runs in (few, many)
    ]

    assert counts[0] == counts[1]
    assert {run.status for run in store.runs()} == {Status.PENDING}
    assert len(store.runs()) == 30


def test_recovering_many_runs_takes_as_many_statements_as_recovering_few(location, make_run):
    counts = []
    for ids in (range(3), range(3, 30)):
        with Store(location) as lost:
            lost.queue(make_run(number) for number in ids)
            lost.start(make_run(ids[0]), ORIGIN)
        with Store(location, exclusive=True) as alone:
            counts.append(len(statements_for(alone, alone.recover)))
            found, ended = alone.runs(), attempts(alone)

    assert counts[0] == counts[1]
    assert {run.status for run in found} == {Status.INTERRUPTED}
    assert all(run.finished_at for run in found)
    assert ended == [(0, "interrupted")] * 2


def test_priority_is_open_runs_then_unfinished_ones_then_the_newest(store, make_run):
    old, new, failed, waiting = runs = [make_run(number) for number in range(4)]
    store.queue(runs)
    with store.engine.begin() as connection:
        connection.execute(
            text("UPDATE runs SET created_at = '2026-01-0' || (run_id + 1) || 'T00:00Z'")
        )
    for run, status in ((old, Status.DONE), (new, Status.DONE), (failed, Status.FAILED)):
        store.finish(run.key, status)
    store.queue([make_run(9, profile="paper")])

    assert store.keys_by_priority(9, "demo") == [run.key for run in (waiting, failed, new, old)]
    assert store.keys_by_priority(2, "demo") == [waiting.key, failed.key]
    assert store.keys_by_priority(9, "paper") == [make_run(9).key]
    assert len(store.keys_by_priority(9)) == 5
    assert store.count_by_status("demo") == {Status.PENDING: 1, Status.FAILED: 1, Status.DONE: 2}
    assert store.count_by_status()[Status.PENDING] == 2


def test_the_profile_that_was_trained_last_is_the_newest(store, make_run):
    none = store.newest_profile()
    store.queue([make_run(1), make_run(2, profile="paper"), make_run(3, profile="custom")])
    for number, profile in ((1, "demo"), (2, "paper"), (3, "custom")):
        at = f"2026-01-0{number}"
        store.finish(make_run(number, profile=profile).key, Status.DONE, at=at)

    assert none is None
    assert store.profiles() == ["custom", "demo", "paper"]
    assert store.newest_profile() == "custom"
    assert store.newest_profile(["demo", "paper"]) == "paper"
    assert store.newest_profile(["other"]) is None


def test_the_profile_in_training_is_the_newest(store, make_run):
    """
    Also if its run was first started long ago.
    """
    continued, other = make_run(1), make_run(2, profile="paper")
    store.queue([continued, other])
    store.start(continued, ORIGIN, at="2026-01-01")
    store.finish(other.key, Status.DONE)

    assert store.newest_profile() == "demo"


def test_writes_to_one_run_leave_the_others_unchanged(store, make_run):
    first, second = make_run(1), make_run(2)
    store.queue([first, second])
    for run in (first, second):
        store.start(run, ORIGIN)
        store.record(run.key, 1, VALUES)
    store.finish(first.key, Status.FAILED, error="x")
    store.delete_run(first.key)

    assert only(store).run_id == 2
    assert (only(store).status, only(store).epoch) == (Status.RUNNING, 1)
    assert attempts(store) == [(0, None)]


# Metrics


def test_recording_an_epoch_again_replaces_it_and_deletes_the_later_ones(store, running):
    """
    A resumed run trains them again; epochs of two attempts must not be mixed.
    """
    store.record(running.key, 1, {"train_loss": 1.0, "accuracy": 0.1})
    store.record(running.key, 2, {"train_loss": 2.0, "accuracy": 0.2})
    store.record(running.key, 3, {"train_loss": 3.0})
    store.record(running.key, 2, {"train_loss": 4.0})

    assert store.metrics(running.key) == {
        1: {"train_loss": 1.0, "accuracy": 0.1},
        2: {"train_loss": 4.0},
    }
    assert (only(store).epoch, only(store).recorded) == (2, 2)


@pytest.mark.parametrize(
    ("epochs", "last", "before_the_gap"),
    [((1, 2, 3), 3, 3), ((1, 2, 4, 5, 7), 7, 2), ((2, 3), 3, 0), ((3,), 3, 0)],
)
def test_the_recorded_epochs_end_before_the_first_that_is_missing(
    store, running, epochs, last, before_the_gap
):
    for epoch in epochs:
        store.record(running.key, epoch, VALUES)

    assert (only(store).epoch, only(store).recorded) == (last, before_the_gap)


def test_each_epoch_has_the_time_of_its_recording(store, running):
    store.record(running.key, 1, VALUES)
    store.record(running.key, 2, VALUES)
    first = store.recorded_at(running.key)
    store.record(running.key, 2, VALUES)
    second = store.recorded_at(running.key)

    assert list(first) == list(second) == [1, 2]
    assert second[1] == first[1]
    assert datetime.fromisoformat(second[2]) >= datetime.fromisoformat(first[2])
    assert datetime.fromisoformat(second[2]).utcoffset() == timedelta(0)


def test_the_last_recording_is_that_of_the_last_epoch(store, make_run):
    trained, queued = make_run(1), make_run(2)
    store.queue([trained, queued])
    epochs = [Epoch(epoch, VALUES, f"2026-01-0{epoch}T00:00Z") for epoch in (1, 2)]
    store.record_epochs(trained.key, epochs)

    assert store.last_recorded_at([trained.key, queued.key]) == {trained.key: "2026-01-02T00:00Z"}


def test_metrics_after_an_epoch_are_the_later_ones(store, running):
    for epoch in range(1, 12):
        store.record(running.key, epoch, {"train_loss": epoch})

    assert list(store.metrics(running.key, after=9)) == [10, 11]
    assert list(store.metrics(running.key, after=2, until=4)) == [3, 4]
    assert store.metrics(running.key, after=11) == {}
    assert store.metrics("nothing") == {}


def test_latest_metrics_are_those_of_each_runs_last_epochs(store, make_run, monkeypatch):
    """
    Many keys are queried in chunks.
    """
    monkeypatch.setattr("orchestrator.store.reader.VALUES_PER_QUERY", 2)
    short, long, queued = runs = [make_run(number) for number in range(3)]
    store.queue(runs)
    for run, epochs in ((short, 1), (long, 4)):
        for epoch in range(1, epochs + 1):
            store.record(run.key, epoch, {"loss": float(epoch), "seconds": 2.0})
    keys = [run.key for run in runs]

    assert store.latest_metrics(keys) == {
        short.key: {1: {"loss": 1.0, "seconds": 2.0}},
        long.key: {4: {"loss": 4.0, "seconds": 2.0}},
    }
    assert store.latest_metrics([long.key, queued.key], epochs=2, names=["loss"]) == {
        long.key: {3: {"loss": 3.0}, 4: {"loss": 4.0}}
    }
    assert store.latest_metrics([]) == {}


def test_the_range_of_a_metric_is_that_of_all_runs_with_the_epoch(store, make_run, monkeypatch):
    monkeypatch.setattr("orchestrator.store.reader.VALUES_PER_QUERY", 2)
    runs = [make_run(number) for number in range(3)]
    store.queue(runs)
    for run, values in zip(runs, [(1.0, 5.0), (2.0, 7.0), (6.0,)], strict=True):
        for epoch, value in enumerate(values, start=1):
            store.record(run.key, epoch, {"loss": value, "other": 0.0})

    assert store.metric_ranges([run.key for run in runs], ["loss", "unknown"]) == {
        "loss": {1: MetricRange(3.0, 1.0, 6.0), 2: MetricRange(6.0, 5.0, 7.0)}
    }
    assert store.metric_ranges([], ["loss"]) == {}


def test_epochs_recorded_together_equal_epochs_recorded_one_by_one(store, make_run):
    runs = one_by_one, together = make_run(1), make_run(2)
    stamp = "2026-01-01T00:00:00.000+00:00"
    store.queue(runs)
    for run in runs:
        for epoch in (1, 2, 3):
            store.record(run.key, epoch, VALUES)
            store.add_checkpoint(run.key, Checkpoint(epoch, f"/c/{epoch}"))
    epochs = [Epoch(epoch, {"train_loss": epoch / 7}, stamp) for epoch in (2, 3)]
    stale = [store.record(one_by_one.key, one.epoch, one.values) for one in epochs]

    assert store.record_epochs(together.key, epochs) == stale[0] == [Checkpoint(3, "/c/3")]
    assert store.record_epochs(together.key, []) == stale[1] == []
    assert store.metrics(together.key) == store.metrics(one_by_one.key)
    assert list(store.recorded_at(together.key).values())[1:] == [stamp, stamp]


def test_nan_in_one_epoch_rejects_all_epochs_of_the_call(store, running):
    epochs = [Epoch(1, VALUES, "t"), Epoch(2, {"train_loss": math.nan}, "t")]
    with pytest.raises(ValueError, match=f"epoch 2 of {running.key}: train_loss is not a number"):
        store.record_epochs(running.key, epochs)

    assert store.metrics(running.key) == {}


def test_a_transaction_is_committed_whole_or_not_at_all(store, running, make_run):
    other = make_run(8)

    def write(then=lambda: None):
        with store.transaction():
            store.delete_run(running.key)
            store.queue([other])
            store.record(other.key, 1, VALUES)
            seen = store.metrics(other.key)
            then()
        return seen

    with pytest.raises(ZeroDivisionError):
        write(lambda: 1 / 0)
    kept = [run.key for run in store.runs()]

    assert kept == [running.key]
    assert write() == {1: VALUES}
    assert [(run.key, run.epoch) for run in store.runs()] == [(other.key, 1)]


def test_a_transaction_is_invisible_to_other_threads_until_it_ends(store, running):
    with ThreadPoolExecutor(1) as thread, store.transaction():
        store.finish(running.key, Status.DONE)
        before = thread.submit(store.runs).result()
    (after,) = store.runs()

    assert [before[0].status, after.status] == [Status.RUNNING, Status.DONE]


def test_numbers_are_stored_exactly(store, running):
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": 1.7976931348623157e308}
    store.record(running.key, 1, values)

    assert {name: value.hex() for name, value in store.metrics(running.key)[1].items()} == {
        name: value.hex() for name, value in values.items()
    }


def test_nan_is_rejected_with_its_whole_epoch(store, running):
    with pytest.raises(ValueError, match=f"epoch 1 of {running.key}: accuracy is not a number"):
        store.record(running.key, 1, {"train_loss": 0.5, "accuracy": math.nan})

    assert store.metrics(running.key) == {}


def test_metrics_of_an_unknown_run_are_rejected(store):
    with pytest.raises(NoResultFound):
        store.record("nothing", 1, VALUES)


def test_final_is_the_last_epoch_of_finished_runs_only(store, make_run):
    """
    The second epoch was the best, but the paper uses the last one.
    """
    done, running, failed, other = (make_run(number) for number in range(4))
    store.queue([done, running, failed, other])
    for run in (done, running, failed, other):
        store.start(run, ORIGIN)
        store.record(run.key, 1, {"accuracy": 0.5})
        store.record(run.key, 2, {"accuracy": 0.9, "only_in_the_second": 1.0})
        store.record(run.key, 3, {"accuracy": 0.7})
    store.finish(done.key, Status.DONE)
    store.finish(failed.key, Status.FAILED)
    store.finish(other.key, Status.DONE)

    assert store.final([run.key for run in (done, running, failed)]) == {
        done.key: {"accuracy": 0.7}
    }
    assert store.final([]) == {}


def test_a_certificate_is_stored_and_kept(store, running):
    certificate = {"arithmetic": "float64", "layers": [{"upper": 0.1 + 0.2}], "violations": []}
    before = only(store).certificate
    store.finish(running.key, Status.DONE, certificate=certificate)
    store.finish(running.key, Status.DONE)

    assert before is None
    assert only(store).certificate == certificate


def test_an_unsound_run_has_no_final_metrics(store, running):
    store.record(running.key, 3, {"accuracy": 0.7})
    store.finish(running.key, Status.UNSOUND, error="layer 1")

    assert store.final([running.key]) == {}
    assert only(store).error == "layer 1"


def test_margins_are_stored_exactly_and_replaced_by_later_ones(store, running):
    values = [0.1, -2.5, 3e38, 0.0]
    store.finish(running.key, Status.DONE, margins=struct.pack("<1f", 9.0))
    store.finish(running.key, Status.DONE, margins=struct.pack("<4f", *values))

    assert store.margins(running.key) == struct.pack("<4f", *values)
    assert store.margins("nothing") is None
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT count FROM margins")).scalar() == 4


def test_frame_has_a_row_per_run_epoch_and_metric(store, running):
    store.record(running.key, 1, {"train_loss": 0.5, "accuracy": 0.125})
    store.record(running.key, 2, {"train_loss": 0.25})
    frame = store.frame()

    assert list(frame.columns) == [
        "key",
        "run_id",
        "name",
        "profile",
        "seed",
        "digest",
        "status",
        "epoch",
        "metric",
        "value",
    ]
    assert list(zip(frame.epoch, frame.metric, frame.value, strict=True)) == [
        (1, "accuracy", 0.125),
        (1, "train_loss", 0.5),
        (2, "train_loss", 0.25),
    ]
    assert set(frame.status) == {"running"}
    assert set(frame.key) == {running.key}


def test_frame_of_a_profile_has_its_runs_only(store, make_run):
    for run in (make_run(1), make_run(2, profile="paper")):
        store.queue([run])
        store.record(run.key, 1, VALUES)

    assert set(store.frame("paper").run_id) == {2}
    assert len(store.frame("nothing")) == 0


def test_frame_of_an_empty_store_has_its_columns_too(store):
    assert len(store.frame()) == 0
    assert "metric" in store.frame().columns


# Checkpoints


def test_two_checkpoints_are_kept_and_the_others_returned(store, running):
    dropped = [
        store.add_checkpoint(running.key, Checkpoint(epoch, f"/c/{epoch}")) for epoch in range(1, 5)
    ]

    assert dropped == [[], [], [Checkpoint(1, "/c/1")], [Checkpoint(2, "/c/2")]]
    assert [item.epoch for item in only(store).checkpoints] == [4, 3]


def test_a_checkpoint_added_twice_is_stored_once(store, running):
    store.add_checkpoint(running.key, Checkpoint(1, "/c/1"))
    dropped = store.add_checkpoint(running.key, Checkpoint(1, "/c/1"))

    assert dropped == []
    assert only(store).checkpoints == (Checkpoint(1, "/c/1"),)


def test_keeping_fewer_checkpoints_returns_the_older(store, running):
    for epoch in (1, 2):
        store.add_checkpoint(running.key, Checkpoint(epoch, f"/c/{epoch}"))

    assert store.keep_checkpoints(running.key, 1) == [Checkpoint(1, "/c/1")]
    assert store.keep_checkpoints(running.key, 1) == []
    assert only(store).checkpoints == (Checkpoint(2, "/c/2"),)


def test_recording_an_earlier_epoch_drops_the_later_checkpoints(store, running):
    """
    The worker could not read those checkpoints and trains their epochs again.
    """
    for epoch in (1, 2, 3):
        store.record(running.key, epoch, VALUES)
    store.add_checkpoint(running.key, Checkpoint(1, "/c/1"))
    store.add_checkpoint(running.key, Checkpoint(3, "/c/3"))
    dropped = store.record(running.key, 2, VALUES)

    assert dropped == [Checkpoint(3, "/c/3")]
    assert only(store).checkpoints == (Checkpoint(1, "/c/1"),)


def test_the_mlflow_run_is_stored(store, running):
    store.set_mlflow_run(running.key, "m1")

    assert only(store).mlflow_run_id == "m1"


# SQL queries


def test_a_query_finds_the_last_epoch_of_finished_runs(store, running):
    store.record(running.key, running.train.epochs, {"accuracy": 0.5})
    before = store.query("SELECT value FROM v_final")
    store.finish(running.key, Status.DONE)

    assert before == (["value"], [])
    assert store.query("SELECT run_id, metric, value FROM v_final") == (
        ["run_id", "metric", "value"],
        [(running.id, "accuracy", 0.5)],
    )


CELL = {
    "table_id": "t",
    "row_label": "AOL-Small",
    "column_title": "Std Acc",
    "metric": "accuracy",
    "published": 70.0,
    "margin": 1.0,
}


def test_the_view_of_cells_has_the_measured_value_of_each_published_cell(store, run):
    """
    Replicates have the seed + 1000 k; runs with other seeds or settings do not count.
    """
    mine = {"run_id": run.id, "seed": run.train.seed, "digest": run.train.digest()}
    values = {0: 0.6, 2000: 0.7, 1: 0.9}
    for further, value in values.items():
        one = run.model_copy(update={"train": replace(run.train, seed=run.train.seed + further)})
        store.queue([one])
        store.start(one, ORIGIN)
        store.record(one.key, one.train.epochs, {"accuracy": value})
        store.finish(one.key, Status.DONE)
    store.replace_cells("demo", [CELL | mine, CELL | mine | {"digest": "other"}])
    _, rows = store.query("SELECT place, seeds, measured, lowest, highest, difference FROM v_cells")

    assert sorted(rows) == [
        (0, 2, pytest.approx(65), pytest.approx(60), pytest.approx(70), pytest.approx(-5)),
        (1, 0, None, None, None, None),
    ]


def test_replacing_cells_keeps_those_that_are_not_given(store, monkeypatch):
    """
    Also in chunks.
    """
    monkeypatch.setattr("orchestrator.store.reader.VALUES_PER_QUERY", 2)
    cells = [CELL | {"run_id": number, "seed": 0, "digest": "d"} for number in range(9)]
    store.replace_cells("demo", cells[:5])
    store.replace_cells("demo", [cells[5], None, cells[6], cells[7]])

    assert store.query("SELECT place, run_id FROM cells ORDER BY 1")[1] == [
        (0, 5),
        (1, 1),
        (2, 6),
        (3, 7),
    ]


def test_replacing_the_cells_of_a_profile_keeps_those_of_others(store):
    mine = {"run_id": 0, "seed": 0, "digest": "d"}
    store.replace_cells("demo", [CELL | mine] * 3)
    store.replace_cells("paper", [CELL | mine] * 2)
    store.replace_cells("demo", [CELL | mine])

    assert store.query("SELECT profile, count(*) FROM cells GROUP BY 1 ORDER BY 1")[1] == [
        ("demo", 1),
        ("paper", 2),
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM metrics",
        "DROP VIEW v_final",
        "COMMIT; DELETE FROM metrics",
        "SELECT 1; DELETE FROM metrics",
        "nonsense",
    ],
)
def test_a_query_that_writes_or_is_invalid_is_a_one_line_error(store, running, sql):
    store.record(running.key, 1, {"accuracy": 0.5})

    with pytest.raises(QueryError) as caught:
        store.query(sql)
    assert "\n" not in str(caught.value)
    store.record(running.key, 2, {"accuracy": 0.6})
    assert store.query("SELECT count(*) AS n FROM metrics") == (["n"], [(2,)])


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA journal_mode = DELETE",
        "PRAGMA query_only = OFF",
        "ATTACH 'new.db' AS new",
        "VACUUM",
        "CREATE TEMP TABLE t (x)",
    ],
)
def test_a_query_cannot_change_the_file_or_its_folder(tmp_path, monkeypatch, sql):
    """
    SQLite allows these statements on a `query_only` connection.
    """
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store.db")
    journal, files = (tmp_path / "store.db").read_bytes()[18:20], set(tmp_path.iterdir())
    with pytest.raises(QueryError, match="only reading is allowed"):
        store.query(sql)
    _, columns = store.query("PRAGMA table_info(cells)")
    after = set(tmp_path.iterdir())
    store.close()

    assert journal == (tmp_path / "store.db").read_bytes()[18:20] == b"\x02\x02"  # WAL
    assert after <= files
    assert "digest" in {name for _, name, *_ in columns}


# Runs of dead drivers


def test_recover_leaves_the_runs_of_a_live_driver_unchanged(store, running):
    store.recover()

    assert only(store).status is Status.RUNNING


def test_recover_interrupts_the_open_runs_of_a_driver_that_ended(location, make_run):
    trained, queued = make_run(0), make_run(1)
    earlier = Store(location)
    earlier.queue([trained, queued])
    earlier.start(trained, ORIGIN)
    earlier.close()
    later = Store(location)
    later.recover()

    assert [found.status for found in later.runs()] == [Status.INTERRUPTED, Status.INTERRUPTED]
    later.close()


def test_recover_leaves_ended_runs_unchanged(store, make_run):
    ends = [Status.DONE, Status.FAILED, Status.DIVERGED, Status.INTERRUPTED]
    runs = [make_run(number) for number in range(4)]
    store.queue(runs)
    for run, end in zip(runs, ends, strict=True):
        store.finish(run.key, end, error="why")

    store.recover()

    assert [found.status for found in store.runs()] == ends
    assert {found.error for found in store.runs()} == {"why"}


def test_a_deleted_run_leaves_no_rows(store, running):
    store.record(running.key, 1, VALUES)
    store.finish(running.key, Status.DONE, margins=b"\0\0\0\0")
    store.delete_run(running.key)

    with store.engine.connect() as connection:
        counts = [
            connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()
            for table in run_tables()
        ]
    assert set(counts) == {0}
    store.delete_run(running.key)


def test_the_migrations_create_the_schema_of_the_models(store):
    with store.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)

    assert differences == []
