import sqlite3
import time

import pytest
from alembic import command
from sqlalchemy import insert, select, text

from orchestrator.errors import StoreError
from orchestrator.store import Checkpoint, Status, Store, close_as_single_file, copy_run, snapshot
from orchestrator.store.models import Base, EpochRow, MetricRow, run_tables
from tests.support.mounts import small_disk
from tests.support.stores import ORIGIN, migrate


@pytest.fixture
def theirs(location):
    """
    Return the location of another store, on every supported database.
    """
    return location


@pytest.fixture(params=["in a file", "in memory"])
def ours(request, tmp_path):
    """
    A target store: SQLite copies between files, Python between any databases.
    """
    opened = Store(tmp_path / "ours.db" if request.param == "in a file" else "sqlite://")
    yield opened
    opened.close()


@pytest.mark.parametrize("size", ["4k,nr_inodes=1", "64k"], ids=["no folder", "no copy"])
def test_a_full_temporary_folder_is_a_one_line_error(tmp_path, make_run, monkeypatch, size):
    location = fill(tmp_path / "theirs.db", make_run(1))
    with small_disk(tmp_path / "full", size) as full:
        monkeypatch.setattr("tempfile.tempdir", str(full))
        with pytest.raises(StoreError) as caught, snapshot(location):
            pass
        left = list(full.iterdir())

    assert f"{location}: cannot be copied to {full}: " in str(caught.value)
    assert str(caught.value).endswith("; set TMPDIR to another folder")
    assert left == []


def fill(location, *runs, epochs=3):
    """
    A store with finished runs of two attempts each.
    """
    store = Store(location)
    for run in runs:
        store.queue([run])
        for attempt, last in enumerate((1, epochs)):
            store.start(run, ORIGIN)
            store.set_placement(run.key, "host", "cpu", attempt)
            for epoch in range(attempt + 1, last + 1):
                store.record(run.key, epoch, {"accuracy": run.id + epoch / 3, "seconds": 1e-300})
            store.add_checkpoint(run.key, Checkpoint(last, f"/ray/{run.key}/{last}"))
        store.finish(run.key, Status.DONE, margins=b"\x00\x01\xff\x7f", certificate={"a": [1]})
        store.set_mlflow_run(run.key, "there")
        store.set_mlflow_status(run.key, Status.DONE)
    store.close()
    return location


def rows(store, key):
    """
    Return the rows of a run by table, without autoincremented IDs.
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
            for table in run_tables()
        }


def test_every_column_of_every_table_of_a_run_is_copied(theirs, ours, make_run):
    first, second, mine = make_run(1), make_run(2), make_run(3)
    fill(theirs, first, second)
    ours.queue([mine])
    ours.start(mine, ORIGIN)  # an attempt with the same ID
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
    Copying and deleting runs need no change when a table is added.
    """
    names = [table.name for table in run_tables()]

    assert names[0] == "runs"
    assert set(Base.metadata.tables) - set(names) == {"cells", "drivers"}


def test_null_stays_null_in_a_copy(theirs, ours, make_run):
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


def test_a_copy_replaces_the_present_run(theirs, ours, make_run):
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


def test_runs_can_be_copied_to_a_server(schema, tmp_path, make_run):
    run = make_run(1)
    with snapshot(fill(tmp_path / "there.db", run)) as other:
        store = Store(schema)
        copy_run(other, store, run.key)
        copy_run(other, store, run.key)

        assert rows(store, run.key) == rows(other, run.key)
        store.close()


def test_a_failed_copy_leaves_the_present_run_unchanged(theirs, store, make_run):
    """
    The disk is full in the middle of the copy.
    """
    run = make_run(1)
    fill(theirs, run, epochs=500)
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


@pytest.mark.slow
def test_two_hundred_thousand_metrics_are_copied_in_seconds(tmp_path, store, make_run):
    run = make_run(1)
    other = Store(fill(tmp_path / "there.db", run))
    values = [{"key": run.key, "name": f"m{number}", "value": 0.1} for number in range(10)]
    with other.engine.begin() as connection:
        epochs = range(10, 20_010)
        connection.execute(
            insert(EpochRow),
            [{"key": run.key, "epoch": epoch, "recorded_at": "-"} for epoch in epochs],
        )
        connection.execute(
            insert(MetricRow), [row | {"epoch": epoch} for epoch in epochs for row in values]
        )
    start = time.process_time()
    copy_run(other, store, run.key)
    took = time.process_time() - start
    other.close()

    assert took < 4
    assert len(store.metrics(run.key)) == 20_003


# Snapshots


def surroundings(path):
    return {item.name: item.read_bytes() for item in path.parent.iterdir()}


def test_a_store_that_is_not_open_is_read_without_a_trace(tmp_path, make_run):
    path = fill(tmp_path / "there" / "store.db", make_run(1))
    before = surroundings(path)
    with snapshot(path) as other:
        assert [run.status for run in other.runs()] == [Status.DONE]

    assert surroundings(path) == before


def test_a_snapshot_of_a_store_in_use_does_not_see_later_writes(tmp_path, make_run):
    """
    Its newest epochs are in the log beside the file.
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


def test_the_log_of_a_killed_driver_is_read_and_kept(tmp_path, make_run):
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


def test_an_older_store_is_upgraded_in_the_copy_only(tmp_path, make_run):
    path = fill(tmp_path / "there" / "store.db", make_run(1))
    migrate(path, command.downgrade, "0004")
    before = path.read_bytes()
    with snapshot(path) as other:
        columns, found = other.query("SELECT count(*) AS n FROM v_final")

    assert (columns, found) == (["n"], [(2,)])
    assert path.read_bytes() == before


def rejection(location):
    with pytest.raises(StoreError) as caught, snapshot(location):
        pass
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    return str(caught.value)


def test_a_newer_store_is_rejected(tmp_path, make_run):
    path = fill(tmp_path / "there.db", make_run(1))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()

    assert rejection(path).startswith(f"{path}: was written by a newer version of this program")


def test_files_that_are_not_stores_are_rejected(tmp_path):
    text_file, other_database = tmp_path / "a.db", tmp_path / "b.db"
    text_file.write_text("no database, but longer than the header of one would be " * 20)
    with sqlite3.connect(other_database) as connection:
        connection.execute("CREATE TABLE runs (x)")
    connection.close()

    assert rejection(tmp_path / "none.db") == f"there is no store at {tmp_path / 'none.db'}"
    assert f"{text_file} cannot be used: file is not a database" in rejection(text_file)
    assert rejection(other_database).startswith(f"{other_database}: is not a store of this program")


def test_a_damaged_store_is_rejected(tmp_path, make_run):
    path = fill(tmp_path / "there.db", make_run(1), epochs=500)
    content = path.read_bytes()
    tables = bytearray(content)
    tables[100:4096] = bytes(3996)  # the first page has the list of tables
    path.write_bytes(tables)
    without_tables = rejection(path)
    rows = bytearray(content)
    rows[-4096 * 20 : -4096 * 10] = b"\xff" * (4096 * 10)
    path.write_bytes(rows)
    without_rows = rejection(path)

    assert f"{path} cannot be used: database disk image is malformed" in without_tables
    assert without_rows.startswith(f"{path}: is damaged: ")


def test_a_snapshot_of_a_server_is_read_only(schema):
    Store(schema).close()

    with (
        snapshot(schema) as other,
        pytest.raises(StoreError, match="read-only transaction"),
    ):
        other.set_mlflow_run("a", "b")


def test_an_older_store_on_a_server_is_not_upgraded(schema):
    store = Store(schema)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0005'"))
    found = rejection(schema)
    store.close()

    assert "has the schema 0005, this program needs" in found
    assert "`status --store`" in found


def test_a_store_closed_as_a_single_file_can_be_read_in_place(tmp_path, make_run):
    path = tmp_path / "sealed" / "store.db"
    store = Store(fill(path, make_run(1)))
    store.runs()
    close_as_single_file(store)

    assert [item.name for item in path.parent.iterdir()] == ["store.db"]
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert connection.execute("SELECT count(*) FROM metrics").fetchone() == (6,)
    connection.close()
    assert [item.name for item in path.parent.iterdir()] == ["store.db"]
