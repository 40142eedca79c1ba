import logging
import shutil
import sqlite3
import threading
import time

import pytest
from sqlalchemy import text

from aol.config import flatten
from orchestrator.events import EpochDone, Finished, Placed, Started, Tick
from orchestrator.provenance import Provenance
from orchestrator.store import Status, Store
from orchestrator.tracking import BATCH, Tracker, TrackingError, TrackingRecorder, tracking_uri

ORIGIN = Provenance("abc", {}, "d-d")
DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory):
    """
    A new MLflow database: making one takes seconds, copying it none.
    """
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    MlflowClient(f"sqlite:///{path}").search_experiments()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@pytest.fixture
def new_tracker(empty_mlflow, tmp_path):
    """
    Makes trackers of one experiment, each with an MLflow database of its own.
    """
    made = []

    def make():
        folder = tmp_path / f"mlflow-{len(made)}"
        folder.mkdir()
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        made.append(Tracker(f"sqlite:///{folder}/mlflow.db", "tiny", folder / "mlruns"))
        return made[-1]

    return make


@pytest.fixture
def tracker(new_tracker):
    return new_tracker()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.db")
    yield store
    store.engine.dispose()


@pytest.fixture
def run(make_run, store):
    run = make_run(7)
    start(store, run)
    return run


def start(store, run):
    store.queue([run])
    store.start(run, ORIGIN)
    store.place(run.key, "host", "CPU")


def record(store, run, *epochs):
    for epoch in epochs:
        store.record(run.key, epoch, {"train_loss": 1 / epoch, "accuracy": epoch / 10})


def client_of(tracker):
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri)


def shown(tracker):
    """
    Every run that MLflow shows.
    """
    client = client_of(tracker)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(experiments))


def history(tracker, run_id, name):
    return [(one.step, one.value) for one in client_of(tracker).get_metric_history(run_id, name)]


def test_one_experiment_with_one_run_per_run(tracker, store, run, make_run):
    start(store, make_run(8))
    sent = tracker.send(store)
    experiments = [one.name for one in client_of(tracker).search_experiments()]

    assert sent == 2
    assert sorted(experiments) == ["Default", "tiny"]
    assert {one.info.run_name for one in shown(tracker)} == {
        "7 AOL-Small (digits, seed 7)",
        "8 AOL-Small (digits, seed 8)",
    }


def test_a_run_shows_its_settings_and_its_origin(tracker, store, run):
    tracker.send(store)
    (found,) = shown(tracker)
    expected = {
        "aol.key": run.key,
        "run_id": "7",
        "model": "AOL-Small",
        "dataset": "digits",
        "profile": "demo",
        "seed": "7",
        "digest": run.train.digest(),
        "status": "running",
        "git_commit": "abc",
        "host": "host",
        "device": "CPU",
    }

    assert found.data.params == {name: str(value) for name, value in flatten(run.train).items()}
    assert expected.items() <= found.data.tags.items()
    assert store.runs()[0].mlflow_run_id == found.info.run_id


def test_metrics_are_sent_per_epoch_and_never_twice(tracker, store, run):
    record(store, run, 1, 2)
    tracker.send(store)
    tracker.send(store)
    record(store, run, 3)
    tracker.send(store, [run.key])
    (found,) = shown(tracker)

    assert history(tracker, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert history(tracker, found.info.run_id, "epoch") == [(1, 1), (2, 2), (3, 3)]
    assert set(found.data.metrics) == {"train_loss", "accuracy", "epoch"}


def test_another_process_sends_what_is_new_only(tracker, store, run):
    record(store, run, 1, 2)
    tracker.send(store)
    record(store, run, 3)
    Tracker(tracker.uri, "tiny", tracker.artifacts).send(store)
    (found,) = shown(tracker)

    assert history(tracker, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_epochs_repeated_by_a_resumed_run_stay_single(tracker, store, run):
    record(store, run, 1, 2, 3)
    tracker.send(store)
    store.start(run, ORIGIN)
    record(store, run, 2)
    tracker.send(store)
    record(store, run, 3, 4)
    tracker.send(store)
    (found,) = shown(tracker)

    assert [step for step, _ in history(tracker, found.info.run_id, "accuracy")] == [1, 2, 3, 4]


def test_a_run_trained_again_from_the_start_shows_its_new_numbers(tracker, store, run):
    """
    As after --rerun: the store forgot the run, MLflow did not.
    """
    store.record(run.key, 1, {"accuracy": 0.1})
    store.record(run.key, 2, {"accuracy": 0.2})
    tracker.send(store)
    store.forget(run.key)
    start(store, run)
    store.record(run.key, 1, {"accuracy": 0.7})
    tracker.send(store)
    run_id = store.runs()[0].mlflow_run_id

    assert history(tracker, run_id, "accuracy") == [(1, 0.7)]


def test_more_metrics_than_one_call_takes_all_arrive(tracker, store, run):
    names = [f"metric_{number:03}" for number in range(100)]
    for epoch in range(1, 12):
        store.record(run.key, epoch, dict.fromkeys(names, float(epoch)))
    tracker.send(store)
    (found,) = shown(tracker)

    assert len(names) * 11 > BATCH
    assert found.data.metrics == dict.fromkeys([*names, "epoch"], 11.0)
    assert len(history(tracker, found.info.run_id, "metric_050")) == 11


def test_states_have_mlflows_names(tracker, store, make_run):
    runs = {status: make_run(number) for number, status in enumerate(Status)}
    for run in runs.values():
        start(store, run)
    tracker.send(store)
    for status, run in runs.items():
        store.finish(run.key, status)
    tracker.send(store)

    assert {one.data.tags["status"]: one.info.status for one in shown(tracker)} == {
        "pending": "SCHEDULED",
        "running": "RUNNING",
        "done": "FINISHED",
        "failed": "FAILED",
        "diverged": "FAILED",
        "unsound": "FAILED",
        "interrupted": "KILLED",
    }


def test_an_unsound_run_says_so_in_a_tag_beside_its_arithmetic(tracker, store, run):
    store.finish(run.key, Status.UNSOUND, error="layer 1", certificate={"arithmetic": "float64"})
    tracker.send(store)
    (found,) = shown(tracker)

    assert found.info.status == "FAILED"
    assert found.data.tags["unsound"] == "layer 1"
    assert found.data.tags["certified_in"] == "float64"


def test_the_error_of_another_failure_is_no_unsoundness(tracker, store, run):
    store.finish(run.key, Status.FAILED, error="no memory")
    tracker.send(store)

    assert not {"unsound", "certified_in"} & set(shown(tracker)[0].data.tags)


def test_a_resumed_run_is_running_again(tracker, store, run):
    store.finish(run.key, Status.INTERRUPTED)
    tracker.send(store)
    store.start(run, ORIGIN)
    tracker.send(store)

    assert [one.info.status for one in shown(tracker)] == ["RUNNING"]


def test_a_run_whose_mlflow_id_was_lost_is_found_by_its_tag(tracker, store, run):
    """
    The driver was killed between making MLflow's run and noting it.
    """
    record(store, run, 1)
    tracker.send(store)
    (before,) = shown(tracker)
    store.link(run.key, None)
    tracker.send(store)
    (after,) = shown(tracker)

    assert after.info.run_id == before.info.run_id == store.runs()[0].mlflow_run_id
    assert history(tracker, after.info.run_id, "accuracy") == [(1, 0.1)]


def test_runs_0_and_22_are_not_taken_for_each_other(tracker, store, make_run):
    for number in (0, 22):
        start(store, make_run(number, seed=0))
    tracker.send(store)

    assert len(shown(tracker)) == 2


def test_a_lost_mlflow_database_is_made_anew(new_tracker, store, run):
    """
    The store still names runs of the database that is gone.
    """
    record(store, run, 1, 2)
    store.finish(run.key, Status.DONE)
    new_tracker().send(store)
    before = store.runs()[0].mlflow_run_id
    rebuilt = new_tracker()
    rebuilt.send(store)
    (found,) = shown(rebuilt)

    assert found.info.run_id == store.runs()[0].mlflow_run_id != before
    assert history(rebuilt, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2)]
    assert found.info.status == "FINISHED"
    assert found.data.params["model.kind"] == "patchwise"


def test_a_run_deleted_in_mlflow_is_made_anew(tracker, store, run):
    record(store, run, 1)
    tracker.send(store)
    (before,) = shown(tracker)
    client_of(tracker).delete_run(before.info.run_id)
    tracker.send(store)
    (after,) = shown(tracker)

    assert after.info.run_id != before.info.run_id
    assert history(tracker, after.info.run_id, "accuracy") == [(1, 0.1)]


def test_files_are_attached_to_the_runs_named(tracker, store, run, make_run, tmp_path):
    start(store, make_run(8))
    tracker.send(store)
    table = tmp_path / "tables.md"
    table.write_text("| a |")
    tracker.attach(store, [run.key], [table])
    found = {one.data.tags["run_id"]: one.info.run_id for one in shown(tracker)}
    client = client_of(tracker)

    assert [one.path for one in client.list_artifacts(found["7"], "tables")] == ["tables/tables.md"]
    assert client.list_artifacts(found["8"]) == []
    (copy,) = tracker.artifacts.rglob("tables.md")
    assert copy.read_text() == "| a |"


def test_a_run_that_mlflow_does_not_know_gets_no_files(tracker, store, run, tmp_path):
    table = tmp_path / "tables.md"
    table.write_text("| a |")
    tracker.attach(store, [run.key], [table])

    assert not tracker.artifacts.exists()


def test_a_file_that_cannot_be_attached_is_a_tracking_error(tracker, store, run, tmp_path):
    tracker.send(store)

    with pytest.raises(TrackingError, match=f"MLflow at {tracker.uri}: "):
        tracker.attach(store, [run.key], [tmp_path / "none"])


def test_the_server_of_the_environment_comes_first(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")

    assert own == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(tmp_path) == "http://server:5000"


# While runs train


@pytest.fixture
def dead_server(monkeypatch, tmp_path):
    """
    A tracker whose server does not answer.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    return Tracker(DEAD, "tiny", tmp_path / "mlruns")


def test_a_dead_server_is_one_tracking_error(dead_server, store, run):
    with pytest.raises(TrackingError, match=f"^MLflow at {DEAD}: "):
        dead_server.send(store)


def test_a_dead_server_never_raises_and_is_told_at_the_end(dead_server, store, run):
    tell = TrackingRecorder(dead_server, store)
    for epoch in (1, 2, 3):
        record(store, run, epoch)
        tell(EpochDone(run, epoch, {}))
    tell(Finished(run, Status.DONE))
    problem = tell.close(30)

    assert problem.startswith(f"MLflow at {DEAD}: ")


def test_a_runs_life_arrives(tracker, store, run):
    tell = TrackingRecorder(tracker, store)
    tell(Started(run))
    tell(Placed(run, "host", "CPU", 0))
    for epoch in (1, 2):
        record(store, run, epoch)
        tell(EpochDone(run, epoch, {}))
    tell(Tick((run,)))
    store.finish(run.key, Status.DONE)
    tell(Finished(run, Status.DONE))
    problem = tell.close(30)
    (found,) = shown(tracker)

    assert problem is None
    assert found.info.status == "FINISHED"
    assert history(tracker, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2)]


class FakeTracker:
    """
    A tracker that answers when it is let to, after failing so many times.
    """

    uri = "fake"

    def __init__(self, failures=0, *, open_=True):
        self.failures, self.sent = failures, []
        self.gate, self.entered = threading.Event(), threading.Event()
        if open_:
            self.gate.set()

    def send(self, store, keys):
        self.entered.set()
        self.gate.wait(10)
        if self.failures:
            self.failures -= 1
            raise TrackingError("down")
        self.sent.append(set(keys))


def test_a_slow_server_costs_training_nothing(run):
    slow = FakeTracker(open_=False)
    tell = TrackingRecorder(slow, None)
    started = time.monotonic()
    for epoch in range(1000):
        tell(EpochDone(run, epoch, {}))
    took = time.monotonic() - started
    slow.entered.wait(10)
    late = tell.close(0.05)
    slow.gate.set()

    assert took < 1
    assert late == "MLflow at fake is slow: not everything is there yet"
    assert tell.close(10) is None


def test_what_moved_meanwhile_is_sent_in_one_go(run, make_run):
    other = make_run(8)
    tracker = FakeTracker(open_=False)
    tell = TrackingRecorder(tracker, None)
    tell(Started(run))
    assert tracker.entered.wait(10)
    for epoch in range(100):
        tell(EpochDone(run, epoch, {}))
        tell(EpochDone(other, epoch, {}))
    tracker.gate.set()
    problem = tell.close(10)

    assert problem is None
    assert tracker.sent[0] == {run.key}
    assert set.union(*tracker.sent[1:]) == {run.key, other.key}
    assert len(tracker.sent) <= 3


def test_a_server_that_is_back_at_the_end_gets_everything(run, make_run):
    """
    And is not asked in between: each try may cost a timeout.
    """
    other = make_run(8)
    tracker = FakeTracker(failures=1)
    tell = TrackingRecorder(tracker, None)
    tell(Started(run))
    assert tracker.entered.wait(10)
    while tell.problem is None:
        time.sleep(0.001)
    tell(Started(other))
    time.sleep(0.05)
    in_between = list(tracker.sent)
    problem = tell.close(10)

    assert in_between == []
    assert problem is None
    assert set.union(*tracker.sent) == {run.key, other.key}


def test_ticks_and_places_send_nothing(run):
    tracker = FakeTracker()
    tell = TrackingRecorder(tracker, None)
    tell(Tick((run,)))
    tell(Placed(run, "host", "CPU", 0))
    tell.close(10)

    assert all(sent == set() for sent in tracker.sent)


def test_a_store_that_cannot_be_read_is_told_at_the_end_like_a_dead_server(tracker, store, run):
    """
    The thread must not die of it in silence: MLflow is behind.
    """
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE metrics RENAME TO lost"))
    tell = TrackingRecorder(tracker, store)
    tell(Started(run))

    assert tell.close(10) is not None
