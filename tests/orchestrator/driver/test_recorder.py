import math
import sqlite3
import struct
from contextlib import closing, contextmanager

import pytest
from sqlalchemy.event import listen

from orchestrator.driver import recorder as recorder_module
from orchestrator.driver.recorder import StoreRecorder
from orchestrator.errors import StoreError, StoreLostError
from orchestrator.provenance import Provenance
from orchestrator.scheduling.events import EpochDone, Finished, Placed, Saved, Started, Tick
from orchestrator.store import Checkpoint, Status, Store

ORIGINS = {"digits": Provenance("abc", {"torch": "2.0"}, "d-d")}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.db")
    yield store
    store.engine.dispose()


@pytest.fixture
def run(make_run, store):
    run = make_run(7)
    store.queue([run])
    return run


@pytest.fixture
def discarded():
    return []


@pytest.fixture
def recorder(store, discarded):
    return StoreRecorder(store, ORIGINS, discarded.append)


def only(store):
    (found,) = store.runs()
    return found


def send_saved(recorder, run, *paths):
    for epoch, path in enumerate(paths, start=1):
        recorder(Saved(run, Checkpoint(epoch, path)))


def test_events_are_written_to_the_store(recorder, store, run):
    recorder(Started(run))
    recorder(Placed(run, "host", "CPU", 0))
    recorder(EpochDone(run, 1, {"train_loss": 0.5}))
    recorder(Saved(run, Checkpoint(1, "/s/a/1")))
    recorder(EpochDone(run, 2, {"train_loss": 0.25}))
    found = only(store)

    assert (found.status, found.host, found.device) == (Status.RUNNING, "host", "CPU")
    assert (found.git_commit, found.data_fingerprint) == ("abc", "d-d")
    assert found.checkpoints == (Checkpoint(1, "/s/a/1"),)
    assert store.metrics(run.key) == {1: {"train_loss": 0.5}, 2: {"train_loss": 0.25}}


def test_each_attempt_has_the_origin_that_its_worker_reported(recorder, store, run):
    """
    The run has that of the last one. The third worker is lost before it reports.
    """
    other = Provenance("def", {"torch": "2.1"}, "d-d", "a patch", gpu_driver="580.1")
    recorder(Started(run))
    recorder(Placed(run, "first", "CPU", 0, ORIGINS["digits"]))
    recorder(Started(run))
    recorder(Placed(run, "second", "NVIDIA H200", 2, other))
    recorder(Started(run))
    first, second, third = store.attempts(run.key)

    assert (first.host, first.git_commit, first.from_epoch) == ("first", "abc", 0)
    assert (second.host, second.device, second.gpu_driver) == ("second", "NVIDIA H200", "580.1")
    assert (second.git_commit, second.git_diff, second.from_epoch) == ("def", "a patch", 2)
    assert (third.host, third.git_commit) == (None, "abc")
    assert (only(store).git_commit, only(store).packages) == ("abc", {"torch": "2.0"})


def test_the_store_is_not_read_for_checkpoints_while_none_is_dropped(
    recorder, store, run, monkeypatch
):
    recorder(Started(run))
    monkeypatch.setattr(store, "runs", None)
    send_saved(recorder, run, "/s/a/1", "/s/a/2")
    monkeypatch.undo()

    assert len(only(store).checkpoints) == 2


def test_the_end_of_a_run_is_written_with_its_margins_or_its_error(recorder, store, run):
    recorder(Started(run))
    recorder(Finished(run, Status.FAILED, error="no memory"))
    failed = only(store)
    certificate = {"arithmetic": "float64"}
    recorder(Finished(run, Status.DONE, margins=struct.pack("<2f", 1, 2), certificate=certificate))

    assert only(store).certificate == certificate
    assert (failed.status, failed.error) == (Status.FAILED, "no memory")
    assert (only(store).status, only(store).error) == (Status.DONE, None)
    assert store.margins(run.key) == struct.pack("<2f", 1, 2)


def test_repeated_events_change_nothing(recorder, store, run, discarded):
    events = [
        Placed(run, "host", "CPU", 0),
        EpochDone(run, 1, {"train_loss": 0.5}),
        Saved(run, Checkpoint(1, "/s/a/1")),
        Finished(run, Status.DONE, margins=b"\0\0\0\0"),
    ]
    recorder(Started(run))
    for event in events:
        recorder(event)
    once = only(store)
    for event in events:
        recorder(event)
    twice = only(store)

    assert twice.checkpoints == once.checkpoints
    assert (twice.status, twice.recorded) == (once.status, once.recorded)
    assert discarded == []


def test_a_run_that_never_started_can_fail(recorder, store, run):
    recorder(Finished(run, Status.FAILED, error="lost"))

    assert only(store).status is Status.FAILED


def test_the_third_checkpoint_discards_the_first(recorder, run, discarded):
    send_saved(recorder, run, "/s/a/1", "/s/a/2")
    two = list(discarded)
    send_saved(recorder, run, "/s/a/1", "/s/a/2", "/s/a/3", "/s/a/4")

    assert two == []
    assert discarded == ["/s/a/1", "/s/a/2"]


def test_an_earlier_folder_is_discarded_with_its_last_checkpoint(recorder, run, discarded):
    """
    A driver killed while it saved leaves a checkpoint there that is not in the store.
    """
    send_saved(recorder, run, "/s/old/7/1", "/s/old/7/2", "/s/new/7/1")
    one_left = list(discarded)
    recorder(Saved(run, Checkpoint(4, "/s/new/7/2")))

    assert one_left == ["/s/old/7/1"]
    assert discarded == ["/s/old/7/1", "/s/old/7"]


def test_checkpoints_of_epochs_trained_again_are_discarded(recorder, run, discarded):
    """
    Their folder is kept, because it may be in use.
    """
    send_saved(recorder, run, "/s/a/1", "/s/a/2")
    recorder(EpochDone(run, 1, {"train_loss": 0.5}))

    assert discarded == ["/s/a/2"]


def test_checkpoints_may_be_uris(recorder, run, discarded):
    send_saved(recorder, run, "s3://b/old/1", "s3://b/new/1", "s3://b/new/2", "s3://b/new/3")

    assert discarded == ["s3://b/old", "s3://b/new/1"]


@pytest.mark.parametrize("status", [Status.DONE, Status.UNSOUND])
def test_a_finished_run_keeps_one_checkpoint(recorder, store, run, discarded, status):
    send_saved(recorder, run, "/s/a/1", "/s/a/2")
    recorder(Finished(run, status))

    assert discarded == ["/s/a/1"]
    assert only(store).checkpoints == (Checkpoint(2, "/s/a/2"),)


@pytest.mark.parametrize("status", [Status.FAILED, Status.INTERRUPTED, Status.DIVERGED])
def test_an_unfinished_run_keeps_two_checkpoints(recorder, store, run, discarded, status):
    """
    The newest one may turn out to be damaged when the run is continued.
    """
    send_saved(recorder, run, "/s/a/1", "/s/a/2")
    recorder(Finished(run, status))

    assert discarded == []
    assert len(only(store).checkpoints) == 2


@pytest.fixture
def lock(store):
    """
    Return a context manager that locks the database, as another program may.
    """

    @contextmanager
    def locked():
        with closing(sqlite3.connect(store.url.database, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    return locked


@pytest.fixture
def impatient(store, monkeypatch):
    """
    Let the store give up at once if the database is locked, and the recorder try at every event.
    """
    monkeypatch.setattr(recorder_module, "RETRY_S", 0.0)
    with store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    listen(store.engine, "checkout", lambda one, *_: one.execute("PRAGMA busy_timeout = 0"))


def test_events_wait_in_their_order_while_the_store_is_locked(
    store, run, discarded, impatient, lock
):
    said = []
    recorder = StoreRecorder(store, ORIGINS, discarded.append, said.append)
    recorder(Started(run))
    recorder(Saved(run, Checkpoint(1, "/s/a/1")))
    with lock():
        for epoch in (1, 2, 3):
            recorder(EpochDone(run, epoch, {"train_loss": 1 / epoch}))
            recorder(Saved(run, Checkpoint(epoch, f"/s/a/{epoch}")))
        during = [*discarded]
        recorder(Tick())
    recorder(Tick())
    recorder.close()

    assert during == []
    assert discarded == ["/s/a/1"]
    assert list(store.metrics(run.key)) == [1, 2, 3]
    assert [one.path for one in only(store).checkpoints] == ["/s/a/3", "/s/a/2"]
    assert len(said) == 2
    assert said[0].startswith("The store cannot be written, so events wait: ")
    assert said[1] == "The store can be written again, and is complete."


def test_the_end_waits_for_the_store(store, run, discarded, impatient, lock):
    recorder = StoreRecorder(store, ORIGINS, discarded.append, print)
    recorder(Started(run))
    with lock():
        recorder(EpochDone(run, 1, {"train_loss": 1.0}))
    recorder.close()

    assert list(store.metrics(run.key)) == [1]


def test_what_cannot_be_written_to_the_end_is_an_error(store, run, discarded, impatient, lock):
    recorder = StoreRecorder(store, ORIGINS, discarded.append, print)
    recorder(Started(run))
    with lock():
        recorder(EpochDone(run, 1, {"train_loss": 1.0}))
        recorder(Finished(run, Status.DONE, margins=b"1234"))
        with pytest.raises(StoreError, match=r"2 events were not written, so repeat the command"):
            recorder.close(patience_s=0.01)

    assert only(store).status is Status.RUNNING


def test_after_another_driver_took_over_events_are_dropped_without_a_retry(run, store, discarded):
    said = []
    recorder = StoreRecorder(store, ORIGINS, discarded.append, said.append)
    recorder(Started(run))
    send_saved(recorder, run, "/s/a/1", "/s/a/2")
    Store(store.url, exclusive=True).close()
    with pytest.raises(StoreLostError):
        recorder(Saved(run, Checkpoint(3, "/s/a/3")))
    recorder(EpochDone(run, 1, {"train_loss": 0.5}))
    recorder(Tick())
    with pytest.raises(StoreLostError, match="another driver took over"):
        recorder.close()

    assert (said, discarded) == ([], [])
    assert store.metrics(run.key) == {}


def test_an_event_that_can_never_be_written_does_not_hold_up_the_others(recorder, store, run):
    recorder(Started(run))
    with pytest.raises(ValueError, match="is not a number"):
        recorder(EpochDone(run, 1, {"train_loss": math.nan}))
    recorder(EpochDone(run, 2, {"train_loss": 0.5}))

    assert list(store.metrics(run.key)) == [2]
