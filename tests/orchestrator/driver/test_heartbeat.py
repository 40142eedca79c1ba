import sqlite3
import time
from contextlib import closing

import pytest

from orchestrator.driver import heartbeat as heartbeat_module
from orchestrator.driver.heartbeat import Heartbeat
from orchestrator.errors import StoreLostError
from orchestrator.scheduling.events import Tick
from orchestrator.store import Store


@pytest.fixture
def store(tmp_path, make_run, monkeypatch):
    """
    A store with an open run, and a heart that beats a hundred times a second.
    """
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_S", 0.01)
    store = Store(tmp_path / "store.db", exclusive=True)
    store.queue([make_run(7)])
    yield store
    store.close()


def wait_for_beats(store, count=3):
    """
    Wait until the driver has so many more beats than now.
    """
    ends, first = time.monotonic() + 60, beats(store)
    while beats(store) < first + count:
        assert time.monotonic() < ends
        time.sleep(0.01)


def beats(store):
    with closing(sqlite3.connect(store.url.database)) as database:
        return database.execute("SELECT beats FROM drivers").fetchone()[0]


def test_the_heart_beats_until_the_end_of_the_block(store):
    with Heartbeat(store):
        wait_for_beats(store)
    after = beats(store)
    time.sleep(0.05)

    assert beats(store) == after


def test_the_heart_goes_on_after_a_failure_of_the_database(store):
    """
    The table is missing for a while.
    """
    with Heartbeat(store):
        wait_for_beats(store)
        with closing(sqlite3.connect(store.url.database, isolation_level=None)) as database:
            database.execute("ALTER TABLE drivers RENAME TO elsewhere")
            time.sleep(0.05)
            database.execute("ALTER TABLE elsewhere RENAME TO drivers")
        wait_for_beats(store)


def test_the_first_event_after_a_takeover_raises(store):
    with Heartbeat(store) as heartbeat:
        heartbeat(Tick())
        with closing(sqlite3.connect(store.url.database)) as database, database:
            database.execute("UPDATE drivers SET ended_at = 'now'")
        heartbeat._thread.join()
        with pytest.raises(StoreLostError, match="another driver took over"):
            heartbeat(Tick())
