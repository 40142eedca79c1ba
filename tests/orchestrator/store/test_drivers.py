import os
import pickle
import signal
import socket
import threading
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, make_url, text

from orchestrator.errors import StoreError, StoreLostError
from orchestrator.store import Checkpoint, Status, Store, copy_run, snapshot
from orchestrator.store import drivers as drivers_module
from orchestrator.store.drivers import Driver, DriverWatch
from tests.support.stores import ORIGIN, spawn

HERE = socket.gethostname()
OWN_LOCK = """
    locktype = 'advisory' AND objid::bigint = hashtext(current_schema())::bigint & 4294967295
"""
NOBODY = 2**22 + 1  # above the highest process ID of Linux
TRAIN = """
    import pickle, sys, time
    from unittest import mock
    from sqlalchemy import literal
    from orchestrator.errors import StoreError
    from orchestrator.provenance import Provenance
    from orchestrator.store import Store, drivers
    from orchestrator.store.lock import StoreLock

    location, run, host, clock = sys.argv[1:]
    StoreLock.renew = lambda self: None  # a lost lock stays lost
    drivers.socket = mock.Mock(gethostname=lambda: host)
    if clock:
        drivers._now = lambda connection: literal(clock)
    run = pickle.loads(bytes.fromhex(run))
    store = Store(location, exclusive=True)
    store.queue([run])
    store.start(run, Provenance("abc", {}, "d"))
    print("started", flush=True)
    while True:
        try:
            store.heartbeat()
        except StoreError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        time.sleep(0.05)
"""


@pytest.fixture
def run(make_run):
    return make_run(7)


@pytest.fixture
def train(location, run):
    """
    Return a function that starts a driver in another process, on a host with its own clock.
    """
    started = []

    def start(*, host=HERE, clock=""):
        process = spawn(TRAIN, location, pickle.dumps(run).hex(), host, clock)
        started.append(process)
        assert process.stdout.readline() == "started\n", process.stderr.read()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def watch_briefly(monkeypatch):
    """
    Return a function that shortens the time for which a dead driver is watched.
    """
    return lambda: monkeypatch.setattr(drivers_module, "WATCH_S", 0.5)


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


def break_lock(store):
    """
    Let another driver take the lock of an open store: delete its file, or end its connection.
    """
    if store.engine.dialect.name == "sqlite":
        Path(f"{store.url.database}.lock").unlink()
        return
    with store.engine.begin() as connection:
        connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_locks WHERE {OWN_LOCK}"))


def read_run(location):
    with closing(Store(location)) as store:
        (found,) = store.runs()
    return found


# Heartbeats


def test_a_heartbeat_writes_one_row_for_any_number_of_runs(location, make_run):
    store, written = Store(location, exclusive=True), []
    store.queue(make_run(number) for number in range(20))
    before = store.runs()[0].heartbeat_at

    @event.listens_for(store.engine, "after_cursor_execute")
    def count_rows(connection, cursor, statement, *_):
        if not statement.startswith("SELECT"):
            written.append(cursor.rowcount)

    time.sleep(0.002)
    store.heartbeat()
    rows = list(written)
    beats = {found.heartbeat_at for found in store.runs()}
    store.close()

    assert rows == [1]
    assert len(beats) == 1
    assert beats.pop() > before


def test_every_write_is_a_heartbeat(location, run):
    with closing(Store(location, exclusive=True)) as store:
        store.queue([run])
        before = store.runs()[0].heartbeat_at
        time.sleep(0.002)
        store.set_mlflow_run(run.key, "a")

        assert store.runs()[0].heartbeat_at > before


def test_heartbeats_on_a_server_have_its_time(schema, run):
    """
    The clocks of the drivers' machines do not matter.
    """
    store = Store(schema, exclusive=True)
    store.queue([run])
    with store.engine.connect() as connection:
        now = connection.scalar(text("SELECT clock_timestamp()"))
    at = datetime.fromisoformat(store.runs()[0].heartbeat_at)
    store.close()

    assert timedelta() <= now - at < timedelta(seconds=30)


# Live and dead drivers


def test_the_runs_of_a_driver_are_alive_until_it_is_killed(train, location):
    driver = train()
    before = read_run(location)
    kill(driver)

    assert before.alive
    assert before.driver.startswith(f"{HERE}:{driver.pid}:")
    assert not read_run(location).alive


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_driver_whose_clock_differs_is_alive_until_it_is_killed(
    train, location, hours, watch_briefly
):
    clock = datetime.now(UTC) + timedelta(hours=hours)
    driver = train(host="elsewhere", clock=clock.isoformat())
    before = read_run(location)
    kill(driver)
    watch_briefly()

    assert before.alive
    assert not read_run(location).alive


def test_a_closed_driver_is_dead_wherever_it_ran(location, run, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        store = Store(location, exclusive=True)
        store.queue([run])
        open_run = read_run(location)
        store.close()

    assert (open_run.alive, open_run.driver) == (True, f"elsewhere:{os.getpid()}:{token(open_run)}")
    assert not read_run(location).alive


def token(run):
    return run.driver.rpartition(":")[2]


def beating(**known):
    """
    Return a function that reads a driver with one more beat each time.
    """
    beats = iter(range(10**6))
    return lambda: [driver(beats=next(beats), **known)]


def driver(*, host="elsewhere", process=1, beats=0, age_s=0.0):
    return Driver("d", host, process, beats, age_s)


@pytest.mark.parametrize(
    ("read", "alive"),
    [
        (lambda: [driver(age_s=59)], True),
        (lambda: [driver(age_s=-59)], True),
        (lambda: [driver(age_s=61)], False),
        (lambda: [driver(age_s=-61)], False),
        (beating(age_s=3600), True),
        (beating(age_s=-3600), True),
        (lambda: [driver(host=HERE, process=NOBODY)], False),
        (lambda: [driver(host=HERE, age_s=3600)], False),  # another process has this ID by now
        (beating(host=HERE, age_s=3600), True),
        (list, False),
    ],
)
def test_a_heartbeat_that_seems_old_is_compared_with_the_next(read, alive, monkeypatch):
    monkeypatch.setattr(drivers_module, "WATCH_S", 0.05)
    monkeypatch.setattr(drivers_module, "POLL_S", 0.01)

    assert DriverWatch(read).alive() == ({"d"} if alive else set())


def test_a_driver_is_not_watched_again_for_every_answer(monkeypatch):
    """
    `status --watch` asks every two seconds.
    """
    monkeypatch.setattr(drivers_module, "WATCH_S", 0.05)
    read = [driver(age_s=3600)]
    watch = DriverWatch(lambda: read)
    first = watch.alive()
    monkeypatch.setattr(time, "sleep", None)
    second = watch.alive()
    read[:] = [driver(age_s=3600, beats=1)]

    assert (first, second) == (set(), set())
    assert watch.alive() == {"d"}


# Taking over


def test_a_live_driver_without_its_lock_keeps_others_out(train, location):
    train(host="elsewhere")
    with closing(Store(location)) as store:
        break_lock(store)
    with pytest.raises(StoreError, match="another driver is writing to"):
        Store(location, exclusive=True)

    assert read_run(location).status is Status.RUNNING


@pytest.mark.parametrize("host", [HERE, "elsewhere"])
def test_a_killed_driver_is_replaced_though_its_heartbeat_is_recent(
    train, location, host, watch_briefly
):
    kill(train(host=host))
    watch_briefly()
    with closing(Store(location, exclusive=True)) as store:
        store.recover()

        assert store.runs()[0].status is Status.INTERRUPTED


def test_a_lost_lock_is_taken_again_with_the_next_heartbeat(schema):
    store, other = Store(schema, exclusive=True), Store(schema)
    break_lock(other)
    without = wait_for_no_lock(other)
    store.heartbeat()
    again = count_locks(other)
    store.close()
    other.close()

    assert (without, again) == (0, 1)


def wait_for_no_lock(store):
    """
    Return the number of locks once the server has ended the connection.
    """
    deadline = time.monotonic() + 60
    while count_locks(store) and time.monotonic() < deadline:
        time.sleep(0.01)
    return count_locks(store)


def count_locks(store):
    with store.engine.connect() as connection:
        return connection.scalar(text(f"SELECT count(*) FROM pg_locks WHERE {OWN_LOCK}"))


def test_after_a_restart_of_the_server_no_second_driver_is_let_in(schema, postgresql):
    store = Store(schema, exclusive=True)
    postgresql.restart()
    store.heartbeat()
    with pytest.raises(StoreError, match="another driver is writing to"):
        Store(schema, exclusive=True)
    store.close()
    Store(schema, exclusive=True).close()


@pytest.fixture
def replaced(location, run):
    """
    A store whose driver was replaced by another one after a run of one epoch.
    """
    store = Store(location, exclusive=True)
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, {"train_loss": 0.5})
    break_lock(store)
    other = Store(location, exclusive=True)  # of this process, so that it is not watched
    yield store
    other.close()
    store.close()


WRITES = {
    "queue": lambda store, run: store.queue([run]),
    "start": lambda store, run: store.start(run, ORIGIN),
    "set_placement": lambda store, run: store.set_placement(run.key, "host", "CPU", 0),
    "record": lambda store, run: store.record(run.key, 2, {"train_loss": 0.25}),
    "add_checkpoint": lambda store, run: store.add_checkpoint(run.key, Checkpoint(1, "/c")),
    "keep_checkpoints": lambda store, run: store.keep_checkpoints(run.key, 0),
    "finish": lambda store, run: store.finish(run.key, Status.DONE),
    "heartbeat": lambda store, run: store.heartbeat(),
    "recover": lambda store, run: store.recover(),
    "delete_run": lambda store, run: store.delete_run(run.key),
    "replace_cells": lambda store, run: store.replace_cells("demo", []),
    "set_mlflow_run": lambda store, run: store.set_mlflow_run(run.key, "a"),
    "set_mlflow_status": lambda store, run: store.set_mlflow_status(run.key, Status.DONE),
    "transaction": lambda store, run: store.transaction().__enter__(),
    "copy_run": lambda store, run: copy_from_snapshot(store, run.key),
}


def copy_from_snapshot(store, key):
    with snapshot(store.url) as source:
        copy_run(source, store, key, name="copied")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_replaced_driver_writes_nothing(replaced, run, write):
    before = replaced.runs()
    with pytest.raises(StoreLostError, match="another driver took over ") as caught:
        write(replaced, run)

    assert "\n" not in str(caught.value)
    assert replaced.runs() == before
    assert list(replaced.metrics(run.key)) == [1]


def test_every_method_that_writes_is_tested_for_a_replaced_driver():
    reading = {name for name in dir(Store.__base__) if not name.startswith("_")}
    own = {name for name in vars(Store) if not name.startswith("_")}

    assert own - reading - set(WRITES) == {"renew", "record_epochs"}  # `record` calls the latter


def test_taking_over_waits_for_a_transaction_of_the_earlier_driver(schema, run):
    """
    A transaction that began before is complete before the other driver reads the store.
    """
    store, reader, opened = Store(schema, exclusive=True), Store(schema), []
    with store.transaction():
        store.queue([run])
        break_lock(reader)
        taking = threading.Thread(target=lambda: opened.append(Store(schema, exclusive=True)))
        taking.start()
        while not waits_for_a_row(reader):
            assert taking.is_alive()
        during = list(opened)
    taking.join()
    (other,) = opened

    assert during == []
    assert [found.key for found in other.runs()] == [run.key]
    for one in (other, store, reader):
        one.close()


def waits_for_a_row(store):
    query = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with store.engine.connect() as connection:
        return connection.scalar(query) > 0


def test_no_password_is_in_the_message_of_a_lost_store(schema):
    store = Store(make_url(schema).set(password="secret", drivername="postgresql+psycopg"))
    store.queue([])
    with store.engine.begin() as connection:
        connection.execute(text("DELETE FROM drivers"))
    with pytest.raises(StoreLostError) as caught:
        store.heartbeat()
    store.close()

    assert "secret" not in str(caught.value)
