"""
SQL without an end, of a query or of a file's author, and the signals that arrive meanwhile.
"""

import os
import signal
import sqlite3
import threading
from contextlib import closing

import pytest
from sqlalchemy import create_engine

from orchestrator.errors import QueryError, StoreError
from orchestrator.signals import Stopped
from orchestrator.store import Store, snapshot
from orchestrator.store import engine as database
from orchestrator.store.engine import REVISION
from orchestrator.store.watch import watch_engine
from tests.support.fuzz import ENDLESS


@pytest.fixture
def store(tmp_path):
    with closing(Store(tmp_path / "store.db")) as opened:
        yield opened


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)]
)
def test_a_signal_ends_an_endless_query(store, number, raised):
    def stop(number, _):
        raise raised(number)

    before = signal.signal(number, stop)
    timer = threading.Timer(0.3, os.kill, [os.getpid(), number])
    timer.start()

    with pytest.raises(raised):
        store.query(f"SELECT count(*) FROM ({ENDLESS})")
    signal.signal(number, before)


def test_a_query_has_limited_time(store, monkeypatch):
    monkeypatch.setattr(database, "QUERY_SECONDS", 0.1)

    with pytest.raises(QueryError, match=r"the query takes longer than 0\.1 s"):
        store.query(f"SELECT count(*) FROM ({ENDLESS})")


@pytest.mark.parametrize("column", ["i", "zeroblob(60000000)", "'ä' || hex(zeroblob(9000000))"])
def test_a_query_has_limited_rows_and_bytes(store, monkeypatch, column):
    monkeypatch.setattr(database, "QUERY_ROWS", 1000)
    _, rows = store.query(f"SELECT i FROM ({ENDLESS}) LIMIT 1000")

    assert len(rows) == 1000
    with pytest.raises(QueryError, match="has more than 1000 rows or 256 MiB; add a LIMIT"):
        store.query(f"SELECT {column} FROM ({ENDLESS})")


def test_a_value_of_a_query_has_a_limited_size(store):
    with pytest.raises(QueryError, match="too big"):
        store.query("SELECT zeroblob(100000000)")


def test_the_statements_of_an_engine_have_limited_time(tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    watch_engine(engine, 0.1)

    with pytest.raises(Exception, match="interrupted"), engine.connect() as connection:
        connection.exec_driver_sql(f"SELECT count(*) FROM ({ENDLESS})")
    engine.dispose()


def change(store, *statements):
    """
    Close the store and change its file, as somebody else can.
    """
    store.close()
    with closing(sqlite3.connect(store.url.database)) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    return store.url.database


@pytest.mark.parametrize("open_store", [Store, lambda file: snapshot(file).__enter__()])
@pytest.mark.parametrize("table", ["runs", "attempts", "metrics", "alembic_version"])
def test_a_view_in_place_of_a_table_is_refused(store, table, open_store):
    file = change(
        store, f"ALTER TABLE {table} RENAME TO hidden", f"CREATE VIEW {table} AS {ENDLESS}"
    )

    with pytest.raises(StoreError, match=f"`{table}` is a view or a virtual table, not a table"):
        open_store(file)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            f"CREATE TRIGGER own AFTER INSERT ON runs BEGIN SELECT count(*) FROM ({ENDLESS}); END",
            "it has the trigger `own`; a store has none",
        ),
        ("ALTER TABLE cells DROP COLUMN margin", "the columns of the table `cells` are not those"),
        ("ALTER TABLE runs ADD COLUMN x AS (1)", "the columns of the table `runs` are not those"),
        ("DELETE FROM alembic_version", "its version is missing"),
        ("INSERT INTO alembic_version VALUES ('0001')", f"its version is {REVISION}, 0001"),
    ],
)
def test_a_store_of_others_with_another_schema_is_refused(store, statement, message):
    file = change(store, statement)

    with pytest.raises(StoreError, match=message), snapshot(file):
        pass


def test_the_own_tables_and_views_of_a_user_are_no_reason_to_refuse_a_store(store):
    file = change(store, "CREATE TABLE notes (x)", "CREATE VIEW mine AS SELECT key FROM runs")

    with snapshot(file) as opened:
        assert opened.runs() == []
