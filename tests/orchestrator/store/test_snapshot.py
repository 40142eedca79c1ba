import sqlite3
import time

import pytest
from alembic import command
from sqlalchemy import insert, select, text

from orchestrator.errors import StoreError
from orchestrator.store import Checkpoint, Status, Store, copy_run, seal, snapshot
from orchestrator.store.models import Base, EpochRow, MetricRow, tables_of_runs
from tests.support.stores import BACKENDS, ORIGIN, POSTGRESQL, empty_schema, migrate

ON_A_SERVER = pytest.mark.skipif(not POSTGRESQL, reason="AOL_TEST_POSTGRESQL is not set")


@pytest.fixture(params=BACKENDS)
def theirs(request, tmp_path):
    """
    Where another store may be, on every database that is offered.
    """
    if request.param == "sqlite":
        yield str(tmp_path / "theirs" / "store.db")
        return
    with empty_schema() as url:
        yield url


@pytest.fixture(params=["in a file", "in memory"])
def ours(request, tmp_path):
    """
    A store to copy into: by the database itself, or row by row as between different databases.
    """
    opened = Store(tmp_path / "ours.db" if request.param == "in a file" else "sqlite://")
    yield opened
    opened.close()


def fill(location, *runs, epochs=3):
    """
    A store with finished runs of two attempts each.
    """
    store = Store(location)
    for run in runs:
        store.queue([run])
        for attempt, last in enumerate((1, epochs)):
            store.start(run, ORIGIN)
            store.place(run.key, "host", "cpu", attempt)
            for epoch in range(attempt + 1, last + 1):
                store.record(run.key, epoch, {"accuracy": run.id + epoch / 3, "seconds": 1e-300})
            store.saved(run.key, Checkpoint(last, f"/ray/{run.key}/{last}"))
        store.finish(run.key, Status.DONE, margins=b"\x00\x01\xff\x7f", certificate={"a": [1]})
        store.link(run.key, "there")
        store.shown(run.key, Status.DONE)
    store.close()
    return location


def rows(store, key):
    """
    All that a store has of a run, by table, but for the numbers of its rows.
    """
    with store.engine.connect() as connection:
        return {
            table.name: [
                tuple(row)
                for row in connection.execute(
                    select(*(column for column in table.columns if column.name != "id"))
                    .where(table.c.key == key)
                    .order_by(*table.primary_key)
                )
            ]
            for table in tables_of_runs()
        }


def test_every_column_of_every_table_of_a_run_arrives(theirs, ours, make_run):
    first, second, mine = make_run(1), make_run(2), make_run(3)
    fill(theirs, first, second)
    ours.queue([mine])
    ours.start(mine, ORIGIN)  # an attempt of the same number
    with snapshot(theirs) as other:
        for run in (first, second):
            copy_run(other, ours, run.key)
            assert rows(ours, run.key) == rows(other, run.key)
        found = rows(ours, first.key)

    assert {name: len(there) for name, there in found.items()} == {
        "runs": 1,
        "attempts": 2,
        "epochs": 3,
        "margins": 1,
        "metrics": 6,
    }


def test_the_tables_that_belong_to_a_run_are_found_by_their_key():
    """
    A new one needs no change of what copies and forgets runs.
    """
    names = [table.name for table in tables_of_runs()]

    assert names[0] == "runs"
    assert set(Base.metadata.tables) - set(names) == {"cells"}


def test_what_is_unknown_stays_unknown_and_is_no_text(theirs, ours, make_run):
    """
    SQL's NULL and JSON's null are both None in Python.
    """
    run = make_run(1)
    other = Store(theirs)
    other.queue([run])
    copy_run(other, ours, run.key)
    other.close()

    with ours.engine.connect() as connection:
        missing = "packages IS NULL AND certificate IS NULL AND host IS NULL"
        count = connection.execute(text(f"SELECT count(*) FROM runs WHERE {missing}")).scalar()
    assert count == 1


def test_a_copy_takes_the_place_of_what_was_there(theirs, ours, make_run):
    run = make_run(1)
    fill(theirs, run)
    ours.queue([run])
    for _ in range(3):
        ours.start(run, ORIGIN)
    for epoch in range(1, 6):
        ours.record(run.key, epoch, {"loss": 0.1})
    with snapshot(theirs) as other:
        copy_run(other, ours, run.key, mlflow_run_id="ours", mlflow_status=None)
    (found,) = ours.runs()

    assert (found.epoch, found.recorded) == (3, 3)
    assert (found.mlflow_run_id, found.mlflow_status) == ("ours", None)
    assert len(ours.attempts(run.key)) == 2


@ON_A_SERVER
def test_runs_are_copied_into_a_server_too(tmp_path, make_run):
    run = make_run(1)
    with empty_schema() as url, snapshot(fill(tmp_path / "there.db", run)) as other:
        store = Store(url)
        copy_run(other, store, run.key)
        copy_run(other, store, run.key)

        assert rows(store, run.key) == rows(other, run.key)
        store.close()


def test_a_copy_that_fails_leaves_what_was_there(theirs, store, make_run):
    """
    The database fills up in the middle of it.
    """
    run = make_run(1)
    fill(theirs, run, epochs=2000)
    fill(store.url.database, run)
    before = rows(store, run.key)
    raw = store.engine.raw_connection()
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {pages + 5}")
    raw.close()  # the pool hands this connection out again

    with (
        snapshot(theirs) as other,
        pytest.raises(StoreError, match=f"{store.url.database}.*disk is full"),
    ):
        copy_run(other, store, run.key)
    assert rows(store, run.key) == before


def test_two_hundred_thousand_metrics_take_a_second(tmp_path, store, make_run):
    run = make_run(1)
    other = Store(fill(tmp_path / "there.db", run))
    values = [{"key": run.key, "name": f"m{number}", "value": 0.1} for number in range(10)]
    with other.engine.begin() as connection:
        for epoch in range(10, 20_010):
            connection.execute(insert(MetricRow), [row | {"epoch": epoch} for row in values])
            connection.execute(
                insert(EpochRow), {"key": run.key, "epoch": epoch, "recorded_at": "-"}
            )
    start = time.process_time()
    copy_run(other, store, run.key)
    took = time.process_time() - start
    other.close()

    assert took < 4
    assert len(store.metrics(run.key)) == 20_003


# What is only read


def surroundings(path):
    return {item.name: item.read_bytes() for item in path.parent.iterdir()}


def test_a_store_that_nobody_has_open_is_read_without_a_trace(tmp_path, make_run):
    path = fill(tmp_path / "there" / "store.db", make_run(1))
    before = surroundings(path)
    with snapshot(path) as other:
        assert [run.status for run in other.runs()] == [Status.DONE]

    assert surroundings(path) == before


def test_a_store_that_is_being_written_is_read_as_it_is_now(tmp_path, make_run):
    """
    Its newest epochs are in the log beside the file; what comes later is not seen.
    """
    run = make_run(1, epochs=9)
    writer = Store(tmp_path / "there.db")
    writer.queue([run])
    writer.start(run, ORIGIN)
    writer.record(run.key, 1, {"a": 1.0})
    with snapshot(tmp_path / "there.db") as other:
        writer.record(run.key, 2, {"a": 1.0})
        seen = [found.epoch for found in other.runs()]
    writer.close()

    assert seen == [1]


def test_a_log_that_a_killed_driver_left_is_read_and_stays(tmp_path, make_run):
    run = make_run(1)
    living = fill(tmp_path / "living.db", run)
    writer = Store(living)
    writer.record(run.key, 4, {"a": 1.0})
    path = tmp_path / "there" / "store.db"
    path.parent.mkdir()
    for suffix in ("", "-wal"):
        path.with_name(f"store.db{suffix}").write_bytes(
            (tmp_path / f"living.db{suffix}").read_bytes()
        )
    writer.close()
    before = {name: content for name, content in surroundings(path).items() if "shm" not in name}
    with snapshot(path) as other:
        assert [found.epoch for found in other.runs()] == [4]

    after = surroundings(path)
    assert {name: after[name] for name in before} == before


def test_an_older_store_is_read_in_a_copy_of_the_newest_schema(tmp_path, make_run):
    path = fill(tmp_path / "there" / "store.db", make_run(1))
    migrate(path, command.downgrade, "0004")
    before = path.read_bytes()
    with snapshot(path) as other:
        columns, found = other.query("SELECT count(*) AS n FROM v_final")

    assert (columns, found) == (["n"], [(2,)])
    assert path.read_bytes() == before


def refusal(location):
    with pytest.raises(StoreError) as caught, snapshot(location):
        pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_a_newer_store_is_refused(tmp_path, make_run):
    path = fill(tmp_path / "there.db", make_run(1))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()

    assert refusal(path).startswith(f"{path}: was written by a newer version of this program")


def test_what_is_no_store_is_refused(tmp_path):
    text_file, other_database = tmp_path / "a.db", tmp_path / "b.db"
    text_file.write_text("no database, but longer than the header of one would be " * 20)
    with sqlite3.connect(other_database) as connection:
        connection.execute("CREATE TABLE runs (x)")
    connection.close()

    assert refusal(tmp_path / "none.db") == f"there is no store at {tmp_path / 'none.db'}"
    assert f"{text_file} cannot be used: file is not a database" in refusal(text_file)
    assert refusal(other_database).startswith(f"{other_database}: is no store of this program")


def test_a_store_damaged_in_the_middle_is_refused(tmp_path, make_run):
    path = fill(tmp_path / "there.db", make_run(1), epochs=2000)
    content = path.read_bytes()
    tables = bytearray(content)
    tables[100:4096] = bytes(3996)  # the first page: what tables there are
    path.write_bytes(tables)
    without_tables = refusal(path)
    rows = bytearray(content)
    rows[-4096 * 20 : -4096 * 10] = b"\xff" * (4096 * 10)
    path.write_bytes(rows)
    without_rows = refusal(path)

    assert f"{path} cannot be used: database disk image is malformed" in without_tables
    assert without_rows.startswith(f"{path}: is damaged: ")


@ON_A_SERVER
def test_a_store_on_a_server_is_only_read():
    with empty_schema() as url:
        Store(url).close()
        with (
            snapshot(url) as other,
            pytest.raises(StoreError, match="read-only transaction"),
        ):
            other.link("a", "b")


@ON_A_SERVER
def test_an_older_store_on_a_server_is_not_brought_up_to_date(make_run):
    with empty_schema() as url:
        store = Store(url)
        with store.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '0005'"))
        found = refusal(url)
        store.close()

    assert "has the schema 0005 and this program" in found
    assert "`status --store`" in found


def test_a_sealed_store_is_one_file_that_can_be_read_in_place(tmp_path, make_run):
    path = tmp_path / "sealed" / "store.db"
    store = Store(fill(path, make_run(1)))
    store.runs()
    seal(store)

    assert [item.name for item in path.parent.iterdir()] == ["store.db"]
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (6,)
    connection.close()
    assert [item.name for item in path.parent.iterdir()] == ["store.db"]
