import os
import pickle
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from orchestrator import provenance as module
from orchestrator.provenance import PACKAGES, Provenance, git_commit, provenance
from orchestrator.store import Checkpoint, Status, Store, StoreError
from orchestrator.store.schema import LEASE_S, Base

ROOT = Path(__file__).parent.parent
ORIGIN = Provenance(git_commit="abc", packages={"torch": "2.0"}, data_fingerprint="d-d")
VALUES = {"train_loss": 0.5, "accuracy": 0.25}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "store.db"


@pytest.fixture
def store(path):
    store = Store(path)
    yield store
    store.engine.dispose()


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


def set_heartbeat(store, *, age_s, driver=None):
    stamp = (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat()
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE attempts SET heartbeat_at = :s"), {"s": stamp})
        if driver:
            connection.execute(text("UPDATE attempts SET driver = :d"), {"d": driver})


def attempts(store):
    with store.engine.connect() as connection:
        rows = connection.execute(text("SELECT from_epoch, outcome FROM attempts ORDER BY id"))
        return [tuple(row) for row in rows]


def spawn(script, *arguments):
    """
    A Python process that runs `script` with the project on its path.
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def unusable(location):
    """
    What the store says about a location it cannot use, which must be one line.
    """
    with pytest.raises(StoreError) as caught:
        Store(location)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The life of a run


def test_a_queued_run_is_pending_with_all_that_is_known_of_it(store, run):
    store.queue([run])
    found = only(store)

    assert (found.key, found.run_id, found.name, found.profile) == (run.key, 7, "AOL-Small", "demo")
    assert (found.seed, found.digest, found.epochs) == (7, run.train.digest(), 3)
    assert (found.status, found.epoch, found.recorded) == (Status.PENDING, 0, 0)
    assert found.config["model"]["kind"] == "patchwise"
    assert found.config["optimizer"]["drops"] == [0.9, 0.99, 0.999]
    assert (found.checkpoints, found.started_at, found.driver) == ((), None, None)
    assert not found.alive


def test_a_whole_life(store, run):
    store.queue([run])
    store.start(run, ORIGIN)
    store.place(run.key, "host", "CPU, 2 threads")
    started = only(store)
    for epoch in (1, 2, 3):
        store.record(run.key, epoch, {"train_loss": 1 / epoch})
        store.saved(run.key, Checkpoint(epoch, f"/c/{epoch}"))
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


def test_every_attempt_is_kept_with_where_it_began_and_how_it_ended(store, running):
    store.record(running.key, 1, VALUES)
    store.saved(running.key, Checkpoint(1, "/c/1"))
    store.finish(running.key, Status.FAILED)
    store.start(running, ORIGIN)
    store.start(running, ORIGIN)  # its worker was lost
    store.finish(running.key, Status.DONE)

    assert attempts(store) == [(0, "failed"), (1, "interrupted"), (1, "done")]


def test_a_run_that_never_started_can_be_finished(store, run):
    """
    Ray can lose a worker first.
    """
    store.queue([run])
    store.finish(run.key, Status.FAILED, error="its worker was lost")

    assert (only(store).status, only(store).started_at) == (Status.FAILED, None)
    assert only(store).error == "its worker was lost"


def test_queueing_again_keeps_what_is_known(store, running):
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


def test_runs_come_by_id_and_seed(store, make_run):
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


def test_what_happens_to_one_run_leaves_the_others_alone(store, make_run):
    first, second = make_run(1), make_run(2)
    store.queue([first, second])
    for run in (first, second):
        store.start(run, ORIGIN)
        store.record(run.key, 1, VALUES)
    store.finish(first.key, Status.FAILED, error="x")
    store.forget(first.key)

    assert only(store).run_id == 2
    assert (only(store).status, only(store).epoch) == (Status.RUNNING, 1)
    assert attempts(store) == [(0, None)]


# Metrics


def test_recording_an_epoch_again_overwrites_it(store, running):
    store.record(running.key, 1, {"train_loss": 1.0, "accuracy": 0.1})
    store.record(running.key, 2, {"train_loss": 2.0})
    store.record(running.key, 1, {"train_loss": 3.0})

    assert store.metrics(running.key) == {
        1: {"train_loss": 3.0, "accuracy": 0.1},
        2: {"train_loss": 2.0},
    }
    assert only(store).recorded == 2


def test_metrics_after_an_epoch_are_the_later_ones(store, running):
    for epoch in range(1, 12):
        store.record(running.key, epoch, {"train_loss": epoch})

    assert list(store.metrics(running.key, after=9)) == [10, 11]
    assert store.metrics(running.key, after=11) == {}
    assert store.metrics("nothing") == {}


def test_a_missing_epoch_shows_in_the_number_recorded(store, running):
    for epoch in (1, 2, 4):
        store.record(running.key, epoch, VALUES)

    assert (only(store).epoch, only(store).recorded) == (4, 3)


def test_numbers_come_back_bit_for_bit(store, running):
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": 1.7976931348623157e308}
    store.record(running.key, 1, values)

    assert {name: value.hex() for name, value in store.metrics(running.key)[1].items()} == {
        name: value.hex() for name, value in values.items()
    }


def test_nan_is_refused_and_nothing_of_its_epoch_is_kept(store, running):
    with pytest.raises(IntegrityError):
        store.record(running.key, 1, {"train_loss": 0.5, "accuracy": float("nan")})

    assert store.metrics(running.key) == {}


def test_metrics_of_an_unknown_run_are_refused(store):
    with pytest.raises(IntegrityError):
        store.record("nothing", 1, VALUES)


def test_final_is_the_last_epoch_of_finished_runs_only(store, make_run):
    """
    The best epoch was the second; the paper prints the last.
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


def test_a_certificate_comes_back_and_stays(store, running):
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


def test_margins_come_back_as_they_were_and_the_last_ones_win(store, running):
    values = [0.1, -2.5, 3e38, 0.0]
    store.finish(running.key, Status.DONE, margins=struct.pack("<1f", 9.0))
    store.finish(running.key, Status.DONE, margins=struct.pack("<4f", *values))

    assert store.margins(running.key) == struct.pack("<4f", *values)
    assert store.margins("nothing") is None
    with store.engine.connect() as connection:
        assert connection.execute(text("SELECT count FROM margins")).scalar() == 4


def test_frame_is_a_row_per_run_epoch_and_metric(store, running):
    store.record(running.key, 2, {"train_loss": 0.25})
    store.record(running.key, 1, {"train_loss": 0.5, "accuracy": 0.125})
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


def test_frame_of_an_empty_store_has_its_columns_too(store):
    assert len(store.frame()) == 0
    assert "metric" in store.frame().columns


# Checkpoints


def test_two_checkpoints_are_kept_and_the_superfluous_returned(store, running):
    dropped = [store.saved(running.key, Checkpoint(epoch, f"/c/{epoch}")) for epoch in range(1, 5)]

    assert dropped == [[], [], [Checkpoint(1, "/c/1")], [Checkpoint(2, "/c/2")]]
    assert [item.epoch for item in only(store).checkpoints] == [4, 3]


def test_a_checkpoint_noted_twice_is_one(store, running):
    store.saved(running.key, Checkpoint(1, "/c/1"))
    dropped = store.saved(running.key, Checkpoint(1, "/c/1"))

    assert dropped == []
    assert only(store).checkpoints == (Checkpoint(1, "/c/1"),)


def test_keeping_fewer_checkpoints_returns_the_older(store, running):
    for epoch in (1, 2):
        store.saved(running.key, Checkpoint(epoch, f"/c/{epoch}"))

    assert store.keep_checkpoints(running.key, 1) == [Checkpoint(1, "/c/1")]
    assert store.keep_checkpoints(running.key, 1) == []
    assert only(store).checkpoints == (Checkpoint(2, "/c/2"),)


def test_a_link_to_mlflow_is_kept(store, running):
    store.link(running.key, "m1")

    assert only(store).mlflow_run_id == "m1"


# Drivers that live and die


def test_a_live_drivers_runs_are_left_alone(store, running):
    assert store.recover() == []
    assert only(store).status is Status.RUNNING


def test_a_killed_drivers_runs_are_interrupted_at_once(path, store, run):
    """
    A real driver starts the run, says so and is killed; its heartbeat is fresh.
    """
    script = """
        import pickle, sys, time
        from orchestrator.store import Store
        from orchestrator.provenance import Provenance
        run = pickle.loads(bytes.fromhex(sys.argv[2]))
        store = Store(sys.argv[1])
        store.queue([run])
        store.start(run, Provenance("abc", {}, "d"))
        store.record(run.key, 1, {"train_loss": 0.5})
        print("started", flush=True)
        time.sleep(60)
    """
    driver = spawn(script, path, pickle.dumps(run).hex())
    assert driver.stdout.readline() == "started\n", driver.stderr.read()
    alive_before, recovered_before = only(store).alive, store.recover()
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    alive_after, recovered_after = only(store).alive, store.recover()

    assert (alive_before, recovered_before) == (True, [])
    assert (alive_after, recovered_after) == (False, [run.key])
    assert (only(store).status, only(store).epoch) == (Status.INTERRUPTED, 1)
    assert attempts(store) == [(0, "interrupted")]


def test_a_driver_on_another_machine_lives_as_long_as_its_heartbeat_is_fresh(store, running):
    set_heartbeat(store, age_s=LEASE_S - 10, driver="elsewhere:1")
    fresh = only(store).alive
    set_heartbeat(store, age_s=LEASE_S + 10)

    assert fresh
    assert not only(store).alive
    assert store.recover() == [running.key]


def test_a_process_that_took_the_dead_drivers_number_is_not_taken_for_it(store, running):
    """
    Process 1 exists on every machine; only its silence tells.
    """
    set_heartbeat(store, age_s=0, driver=f"{socket.gethostname()}:1")
    fresh = only(store).alive
    set_heartbeat(store, age_s=LEASE_S + 1)

    assert fresh
    assert not only(store).alive


def test_a_beat_renews_the_lease_of_the_runs_named_only(store, make_run):
    first, second = make_run(1), make_run(2)
    store.queue([first, second])
    store.start(first, ORIGIN)
    store.start(second, ORIGIN)
    set_heartbeat(store, age_s=LEASE_S + 1)
    store.beat([first.key])

    assert [found.alive for found in store.runs()] == [True, False]


def test_recording_an_epoch_is_a_sign_of_life(store, running):
    set_heartbeat(store, age_s=LEASE_S + 1)
    before = only(store).alive
    store.record(running.key, 1, VALUES)

    assert not before
    assert only(store).alive


def test_runs_that_were_only_queued_by_a_dead_driver_are_interrupted(store, run):
    store.queue([run])

    assert store.recover() == [run.key]
    assert only(store).status is Status.INTERRUPTED


def test_recovering_keeps_what_ended_as_it_is(store, make_run):
    ends = [Status.DONE, Status.FAILED, Status.DIVERGED, Status.INTERRUPTED]
    runs = [make_run(number) for number in range(4)]
    store.queue(runs)
    for run, end in zip(runs, ends, strict=True):
        store.finish(run.key, end, error="why")

    assert store.recover() == []
    assert [found.status for found in store.runs()] == ends
    assert {found.error for found in store.runs()} == {"why"}


def test_a_forgotten_run_leaves_nothing(store, running):
    store.record(running.key, 1, VALUES)
    store.finish(running.key, Status.DONE, margins=b"\0\0\0\0")
    store.forget(running.key)

    with store.engine.connect() as connection:
        counts = [
            connection.execute(text(f"SELECT count(*) FROM {table}")).scalar()
            for table in Base.metadata.tables
        ]
    assert counts == [0, 0, 0, 0]
    store.forget(running.key)


# The database


def test_a_store_pickles_as_its_url(store, running):
    copy = pickle.loads(pickle.dumps(store))

    assert copy.url == store.url
    assert copy.engine is not store.engine
    assert only(copy).key == running.key
    copy.engine.dispose()


def test_a_path_a_text_and_a_url_name_the_same_store(path, store, running, monkeypatch):
    monkeypatch.chdir(path.parent)
    others = [Store(str(path)), Store(f"sqlite:///{path}"), Store("store.db")]

    assert [only(other).key for other in others] == [running.key] * 3
    for other in others:
        other.engine.dispose()


def test_the_migrations_make_exactly_the_orms_schema(store):
    with store.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)

    assert differences == []


def test_a_store_of_the_first_schema_keeps_its_runs(path, store, running):
    """
    They have no certificate: they were certified in float32, and nothing was proven.
    """
    store.record(running.key, 1, VALUES)
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE runs DROP COLUMN certificate"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    store.engine.dispose()
    upgraded = Store(path)

    assert (only(upgraded).key, only(upgraded).certificate) == (running.key, None)
    assert upgraded.metrics(running.key) == {1: VALUES}
    upgraded.engine.dispose()


def test_sqlite_writes_ahead_and_checks_foreign_keys(store):
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_an_up_to_date_database_is_not_migrated_again(path, store):
    """
    Alembic costs half a second that `status` need not pay.
    """
    script = """
        import sys
        from orchestrator.store import Store
        Store(sys.argv[1]).engine.dispose()
        print("alembic" in sys.modules)
    """
    output, error = spawn(script, path).communicate(timeout=60)

    assert (output, error) == ("False\n", "")


def test_an_empty_file_becomes_a_store(path):
    path.parent.mkdir()
    path.touch()
    store = Store(path)

    assert store.runs() == []
    store.engine.dispose()


def test_a_database_of_a_newer_version_is_refused_with_advice(path, store):
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    message = unusable(path)

    assert str(path) in message
    assert "was written by a newer version of this program" in message
    assert "update the program or choose another --store" in message


def test_a_file_that_is_no_database_is_refused_and_stays_as_it_is(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no database at all\n" * 100)
    message = unusable(path)

    assert message == (
        f"the store sqlite:///{path} cannot be used: file is not a database; "
        "repair it, or choose another with --store"
    )
    assert path.read_text().startswith("no database at all")


def test_a_database_of_another_program_is_refused(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (a)")
    connection.close()

    assert "table runs already exists" in unusable(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_a_truncated_database_is_refused(path, run, share):
    """
    Wherever it was cut, within a page or between two.
    """
    store = Store(path)
    store.queue([run])
    store.engine.dispose()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    def used():
        store = Store(path)
        try:
            return store.runs()
        finally:
            store.engine.dispose()

    with pytest.raises((StoreError, OperationalError)) as caught:
        used()
    assert isinstance(caught.value, StoreError)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()

    assert "cannot be used" in unusable(tmp_path / "file" / "store.db")


def test_a_folder_in_the_place_of_the_file_is_one_line(tmp_path):
    assert "unable to open database file" in unusable(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_one_line(tmp_path):
    tmp_path.chmod(0o555)
    message = unusable(tmp_path / "store.db")
    tmp_path.chmod(0o755)

    assert "unable to open database file" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_is_one_line():
    assert "database or disk is full" in unusable("/dev/full")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("mysql://u:secret@h/db", "mysql is not offered; use sqlite or postgresql"),
        ("nosuch://u:secret@h/db", "nosuch is not offered; use sqlite or postgresql"),
        ("postgresql+foo://u:secret@h/db", "cannot be used"),
        ("sqlite+foo:///x.db", "cannot be used"),
        ("://", "Could not parse"),
    ],
)
def test_another_kind_of_url_is_refused(url, part):
    assert part in unusable(url)


def test_a_url_with_a_port_that_is_no_number_is_refused():
    unusable("postgresql://u:secret@h:port/db")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/db",
        "nosuch://u:secret@h/db",
        "postgresql+foo://u:secret@h/db",
    ],
)
def test_no_password_is_printed(url):
    assert "secret" not in unusable(url)


def test_readers_and_a_writer_do_not_wait_for_each_other(path, store, make_run):
    """
    Two processes read all the while one writes: nobody meets a lock.
    """
    script = """
        import sys, time
        from orchestrator.store import Store
        store, seen, until = Store(sys.argv[1]), 0, time.monotonic() + 60
        print("ready", flush=True)
        while time.monotonic() < until:
            (run,) = store.runs()
            assert run.epoch >= seen, "an epoch vanished"
            assert len(store.metrics(run.key)) >= run.epoch
            seen = run.epoch
            if run.status == "done":
                break
            time.sleep(0.001)
        store.engine.dispose()
        print(seen)
    """
    run = make_run(7, epochs=50)
    store.queue([run])
    store.start(run, ORIGIN)
    readers = [spawn(script, path) for _ in range(2)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 2
    for epoch in range(1, 51):
        store.record(run.key, epoch, VALUES)
    store.finish(run.key, Status.DONE)
    ends = [reader.communicate(timeout=60) for reader in readers]

    assert ends == [("50\n", "")] * 2


def test_a_second_writer_waits_its_turn(store, running, path):
    """
    `sync` links runs to MLflow while the driver writes.
    """
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.3, other.commit)
    release.start()
    started = time.monotonic()
    store.record(running.key, 1, VALUES)
    waited = time.monotonic() - started
    release.join()
    other.close()

    assert waited >= 0.2
    assert only(store).epoch == 1


def test_a_disk_that_fills_up_fails_the_write_and_keeps_what_was_there(store, running):
    store.record(running.key, 1, VALUES)
    raw = store.engine.raw_connection()
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {pages}")
    raw.close()  # the pool hands this connection out again

    with pytest.raises(OperationalError, match="database or disk is full"):
        store.finish(running.key, Status.DONE, margins=bytes(10**6))
    assert only(store).status is Status.RUNNING
    assert store.metrics(running.key) == {1: VALUES}


# Where results come from


def test_provenance_names_code_packages_and_data():
    found = provenance("digits")

    assert found.data_fingerprint == "ddda0fbdddb6cd56-b0b8e1d499dc517d"
    assert set(found.packages) <= set(PACKAGES)
    assert {"torch", "sqlalchemy"} <= set(found.packages)
    assert found.git_commit == git_commit()


def test_commit_is_marked_if_files_differ_and_none_outside_git(tmp_path, monkeypatch):
    package = tmp_path / "orchestrator"
    package.mkdir()
    (package / "code.py").write_text("1")
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=package, check=True, capture_output=True)

    outside = git_commit()
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    clean = git_commit()
    (package / "code.py").write_text("2")

    assert outside is None
    assert len(clean) == 40
    assert git_commit() == f"{clean}+changes"


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert git_commit() is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))

    assert list(module.package_versions()) == ["torch"]
