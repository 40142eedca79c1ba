import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, inspect, text

from orchestrator.errors import StoreError
from orchestrator.store import Status, Store
from orchestrator.store import engine as database
from orchestrator.store.models import Base
from tests.support.stores import ORIGIN, migrate, recorded_statements, spawn

VALUES = {"train_loss": 0.5, "accuracy": 0.25}
NOBODY = 65534


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "store.db"


@pytest.fixture
def store(path):
    store = Store(path)
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


def unusable(location, **options):
    """
    Return the one-line error for a location that cannot be used.
    """
    with pytest.raises(StoreError) as caught:
        Store(location, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Locations


def test_a_path_a_string_and_a_url_open_the_same_store(path, store, running, monkeypatch):
    monkeypatch.chdir(path.parent)
    others = [Store(str(path)), Store(f"sqlite:///{path}"), Store("store.db")]

    assert [only(other).key for other in others] == [running.key] * 3
    for other in others:
        other.close()


def test_sqlite_uses_wal_mode_and_checks_foreign_keys(store):
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (
            "mysql://u:secret@h/db",
            "--store mysql://...: is not supported; use sqlite or postgresql",
        ),
        (
            "nosuch://u:secret@h/db",
            "--store nosuch://...: is not supported; use sqlite or postgresql",
        ),
        ("postgresql+foo://u:secret@h/db", "cannot be used"),
        ("sqlite+foo:///x.db", "cannot be used"),
        ("://", "--store ://...: is not a valid URL; write postgresql://USER@HOST:PORT/"),
    ],
)
def test_unsupported_urls_are_rejected(url, part):
    assert part in unusable(url)


class WithoutPsycopg:
    """
    A module finder that does not find psycopg.
    """

    def find_spec(self, name, path=None, target=None):
        if name == "psycopg":
            raise ModuleNotFoundError("No module named 'psycopg'", name=name)


def test_a_missing_postgresql_driver_is_reported_with_the_command_to_install_it(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [WithoutPsycopg(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "psycopg", raising=False)

    assert unusable("postgresql://u:secret@h/db") == (
        "the store postgresql+psycopg://u:***@h/db cannot be used: No module named 'psycopg'; "
        'install it: pip install "psycopg[binary]>=3.2"'
    )


def test_an_unreachable_postgresql_server_is_a_one_line_error():
    message = unusable("postgresql://u:secret@127.0.0.1:9/db")

    assert "onnection refused" in message
    assert "secret" not in message


def test_a_url_with_an_invalid_port_is_rejected():
    unusable("postgresql://u:secret@h:port/db")


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:secret@h/db",
        "nosuch://u:secret@h/db",
        "postgresql+foo://u:secret@h/db",
        "postgresql://u:secret",
        "postgresql://u:secret/db",
        "postgresql://u:pass@secret@h/db",
        "postgresql://u:pass secret@h/db",
        "postgresql+foo://u:pass/secret@h/db",
        "postgresql+foo://h/db?user=u&password=secret",
        "postgresql+foo://u%3Asecret@h/db",
        "postgresql+foo://u:%73ecret@h/db?sslpassword=secret",
    ],
)
def test_no_password_is_printed(url):
    assert "secret" not in unusable(url)


# The schema


def test_an_up_to_date_database_does_not_import_alembic(path, store):
    """
    Alembic takes half a second to import, which would delay `status`.
    """
    script = """
        import sys
        from orchestrator.store import Store
        Store(sys.argv[1]).close()
        print("alembic" in sys.modules)
    """
    output, error = spawn(script, path).communicate(timeout=60)

    assert (output, error) == ("False\n", "")


def test_an_empty_file_becomes_a_store(path):
    path.parent.mkdir()
    path.touch()
    store = Store(path)

    assert store.runs() == []
    store.close()


@pytest.fixture
def first_version(path):
    """
    A database with the first schema and a run that was interrupted after two epochs.
    """
    path.parent.mkdir()
    migrate(path, command.upgrade, "0001")
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """
            INSERT INTO runs (key, run_id, name, profile, seed, digest, config, epochs, status,
                created_at, started_at, checkpoints)
            VALUES ('7-a', 7, 'AOL-Small', 'demo', 7, 'a', '{"data": {"name": "digits"}}', 3,
                'running', '2026-01-01T00:00:00.000+00:00', '2026-01-01T01:00:00.000+00:00', '[]');
            INSERT INTO attempts (key, from_epoch, driver, started_at, heartbeat_at)
            VALUES ('7-a', 0, 'old:1', '-', '-'),
                ('7-a', 0, 'new:2', '-', '2026-01-01T02:00:00.000+00:00');
            INSERT INTO metrics (key, epoch, name, value)
            VALUES ('7-a', 1, 'seconds', 60), ('7-a', 2, 'seconds', 30.5), ('7-a', 2, 'b', 1);
            """
        )
    connection.close()
    return path


def test_an_older_database_is_upgraded_with_its_rows(first_version):
    store = Store(first_version)
    found = only(store)
    times = store.recorded_at("7-a")
    metrics = store.metrics("7-a")
    store.close()

    assert (found.epoch, found.recorded, found.status) == (2, 2, Status.RUNNING)
    assert (found.driver, found.heartbeat_at) == ("new:2", "2026-01-01T02:00:00.000+00:00")
    assert metrics == {1: {"seconds": 60}, 2: {"seconds": 30.5, "b": 1}}
    assert times == {1: "2026-01-01T01:01:00.000+00:00", 2: "2026-01-01T01:01:30.500+00:00"}


def test_a_failed_upgrade_leaves_the_database_unchanged(first_version):
    with sqlite3.connect(first_version) as connection:
        connection.execute("ALTER TABLE runs ADD COLUMN heartbeat_at")  # in the upgrade's way
    connection.close()
    message = unusable(first_version)
    engine = create_engine(f"sqlite:///{first_version}")
    tables = set(inspect(engine).get_table_names())
    columns = {column["name"] for column in inspect(engine).get_columns("runs")}
    engine.dispose()

    assert "duplicate column name: heartbeat_at" in message
    assert tables == {"alembic_version", "runs", "attempts", "metrics", "margins"}
    assert "driver" not in columns


def test_an_upgrade_can_be_reverted(first_version):
    Store(first_version).close()
    migrate(first_version, command.downgrade, "0001")
    with sqlite3.connect(first_version) as connection:
        beats = connection.execute("SELECT heartbeat_at FROM attempts").fetchall()
    connection.close()
    again = Store(first_version)
    found = only(again)
    again.close()

    assert beats == [("2026-01-01T02:00:00.000+00:00",)] * 2
    assert (found.driver, found.epoch) == ("new:2", 2)


def test_a_newer_database_is_rejected_with_advice(path, store):
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    message = unusable(path)

    assert str(path) in message
    assert "was written by a newer version of this program" in message
    assert "update the program or choose another --store" in message


def test_a_database_of_another_program_is_rejected(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE runs (a)")
    connection.close()

    assert "table runs already exists" in unusable(path)


# Faulty files


def test_a_file_that_is_not_a_database_is_rejected_and_unchanged(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no database at all\n" * 100)
    message = unusable(path)

    assert message == (
        f"the store {path} cannot be used: file is not a database; "
        "repair it, or choose another with --store"
    )
    assert path.read_text().startswith("no database at all")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5, 0.9])
def test_a_truncated_database_is_rejected(path, run, share):
    """
    The file may end within a page or between two.
    """
    store = Store(path)
    store.queue([run])
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    def used():
        store = Store(path)
        try:
            return store.runs()
        finally:
            store.close()

    with pytest.raises(StoreError) as caught:
        used()
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_created_is_a_one_line_error(tmp_path):
    (tmp_path / "file").touch()

    assert "cannot be used" in unusable(tmp_path / "file" / "store.db")


def test_a_folder_in_place_of_the_file_is_a_one_line_error(tmp_path):
    assert "unable to open database file" in unusable(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_is_a_one_line_error():
    assert "database or disk is full; free some space" in unusable("/dev/full")


@pytest.fixture
def open_folder():
    """
    A folder that every user can access, unlike those of pytest.
    """
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def kept(open_folder, run):
    """
    A closed store with a finished run of one epoch.
    """
    store = Store(open_folder / "store.db")
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, VALUES)
    store.finish(run.key, Status.DONE)
    store.close()
    return open_folder / "store.db"


def as_nobody(body, *arguments):
    """
    Return the output of a script run by a user without root's permissions.
    """
    script = "\n".join(
        [
            "import os, sys",
            "from orchestrator.store import Store, StoreError",
            'Store("sqlite://").close()  # import modules before the change of user',
            f"os.getuid() or os.setuid({NOBODY})",
            "try:",
            f"    {body}",
            "except StoreError as error:",
            "    print(error.exit_code, error)",
        ]
    )
    no_coverage = {"COVERAGE_PROCESS_CONFIG": ""}  # that user cannot write it
    output, error = spawn(script, *arguments, **no_coverage).communicate(timeout=60)
    assert error == ""
    return output.rstrip("\n")


READ = "store = Store(sys.argv[1]); print(store.runs()[0].status); store.close()"
DRIVE = "Store(sys.argv[1], exclusive=True)"


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o555), (0o444, 0o777), (0o666, 0o555)])
def test_a_read_only_store_can_be_read(kept, file, folder):
    kept.chmod(file)
    kept.parent.chmod(folder)

    assert as_nobody(READ, kept) == "done"


@pytest.mark.parametrize(("file", "folder"), [(0o444, 0o777), (0o666, 0o555)])
def test_a_read_only_store_is_not_written(kept, file, folder):
    kept.chmod(file)
    kept.parent.chmod(folder)
    before = kept.read_bytes()
    to_drive = as_nobody(DRIVE, kept)
    to_write = as_nobody('Store(sys.argv[1]).set_mlflow_run("a", "b")', kept)

    assert to_drive == (
        f"1 the store {kept} cannot be used: readonly database; "
        "make the file and its folder writable"
    )
    assert "make the file and its folder writable" in to_write
    assert kept.read_bytes() == before


def test_a_read_only_store_is_read_while_another_user_writes(kept, run):
    """
    The newest epochs are only in the log beside the file.
    """
    writer = Store(kept)
    writer.record(run.key, 2, VALUES)
    kept.parent.chmod(0o555)
    output = as_nobody(READ.replace("status", "epoch"), kept)
    writer.close()

    assert output == "2"


def test_a_read_only_store_with_an_older_schema_is_rejected(first_version, open_folder):
    path = Path(shutil.copy(first_version, open_folder))
    path.chmod(0o444)
    open_folder.chmod(0o555)

    assert as_nobody(READ, path) == (
        f"1 the store {path} cannot be used: readonly database with an older schema; "
        "make the file and its folder writable"
    )


def test_a_read_only_folder_without_a_store_is_a_one_line_error(open_folder):
    open_folder.chmod(0o555)

    assert "unable to open database file" in as_nobody(READ, open_folder / "store.db")


def test_a_locked_store_is_a_one_line_error(path, store, running, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    waiting = Store(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError) as caught:
        waiting.record(running.key, 1, VALUES)
    holder.rollback()
    holder.close()
    waiting.record(running.key, 1, VALUES)
    waiting.close()

    assert str(caught.value) == (
        f"the store {path} cannot be used: database is locked; "
        "another program has locked it; stop that program and try again"
    )
    assert only(store).epoch == 1


@pytest.fixture
def small_disk(tmp_path):
    """
    A file system of half a megabyte.
    """
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["removed", "replaced"])
def test_a_file_that_was_removed_or_replaced_is_not_written_to(tmp_path, run, elsewhere):
    location = tmp_path / "results" / "store.db"
    store = Store(location)
    store.queue([run])
    location.parent.rename(tmp_path / "away")
    if elsewhere:
        Store(location).close()
    with pytest.raises(StoreError, match="its file was removed or replaced; put it back"):
        store.heartbeat()
    if elsewhere:
        location.parent.rename(tmp_path / "other")
    (tmp_path / "away").rename(location.parent)
    store.heartbeat()

    assert [one.key for one in store.runs()] == [run.key]
    store.close()


def test_a_full_disk_fails_the_write_and_loses_nothing(small_disk, run):
    store = Store(small_disk / "store.db")
    store.queue([run])
    store.start(run, ORIGIN)
    written = []

    def fill():
        for epoch in range(1, 1000):
            store.record(run.key, epoch, {f"metric {name}": 0.5 for name in range(100)})
            written.append(epoch)

    with pytest.raises(StoreError, match="database or disk is full; free some space"):
        fill()
    kept = only(store)
    store.close()
    with sqlite3.connect(small_disk / "store.db") as connection:
        checked = connection.execute("PRAGMA integrity_check").fetchone()
    connection.close()

    assert len(written) > 1
    assert (kept.status, kept.epoch, kept.recorded) == (Status.RUNNING, *[len(written)] * 2)
    assert checked == ("ok",)


def test_a_write_that_fills_the_disk_keeps_the_earlier_rows(store, running):
    store.record(running.key, 1, VALUES)
    raw = store.engine.raw_connection()
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {pages}")
    raw.close()  # the pool hands this connection out again

    with pytest.raises(StoreError, match="database or disk is full; free some space"):
        store.finish(running.key, Status.DONE, margins=bytes(10**6))
    assert only(store).status is Status.RUNNING
    assert store.metrics(running.key) == {1: VALUES}


READS = {
    "runs": lambda store, key: store.runs([key]),
    "runs by ID": lambda store, key: store.runs(ids=[7], digests=["d"]),
    "runs by profile": lambda store, key: store.runs(profiles=["demo"]),
    "runs by status": lambda store, key: store.runs(statuses=[Status.RUNNING]),
    "final": lambda store, key: store.final([key]),
    "metrics": lambda store, key: store.metrics(key, after=1),
    "latest": lambda store, key: store.latest_metrics([key], epochs=5, names=["seconds"]),
    "recorded_at": lambda store, key: store.recorded_at(key),
    "last recorded": lambda store, key: store.last_recorded_at([key]),
    "margins": lambda store, key: store.margins(key),
    "with margins": lambda store, key: store.keys_with_margins([key]),
    "view by key": lambda store, key: store.query(f"SELECT * FROM v_final WHERE key = '{key}'"),
    "view by run ID": lambda store, key: store.query("SELECT * FROM v_final WHERE run_id = 7"),
    "view by profile": lambda store, key: store.query("SELECT * FROM v_final WHERE profile = 'x'"),
    "view by metric": lambda store, key: store.query("SELECT * FROM v_final WHERE metric = 'cra'"),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_one_run_uses_an_index(store, running, read):
    """
    No table is scanned, so that many other runs do not slow it down.
    """
    with recorded_statements(store) as statements:
        read(store, running.key)
    ((statement, values),) = [given for given in statements if "SELECT" in given[0]]
    with store.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        steps = [row.detail for row in rows]

    tables = tuple(f"SCAN {table}" for table in Base.metadata.tables)
    assert [step for step in steps if step.startswith("SEARCH")]
    assert [step for step in steps if step.startswith(tables)] == []


# Concurrency


def test_readers_and_a_writer_do_not_block_each_other(path, store, make_run):
    """
    Two processes read while one writes.
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
        store.close()
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


def test_a_second_writer_waits_for_the_first(store, running, path):
    """
    `sync` writes IDs of MLflow runs while the driver writes epochs.
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


def test_the_last_attempt_of_an_older_store_gets_the_origin_of_its_run(tmp_path, make_run):
    run = make_run(0)
    with Store(tmp_path / "store.db") as store:
        store.queue([run])
        for host in ("first", "last"):
            store.start(run, ORIGIN)
            store.set_placement(run.key, host, "CPU", 0)
    migrate(tmp_path / "store.db", command.downgrade, "0006")
    with Store(tmp_path / "store.db") as store:
        first, last = store.attempts(run.key)

    assert (first.host, first.git_commit, first.packages) == (None, None, None)
    assert (last.host, last.git_commit, last.packages) == ("last", "abc", {"torch": "2.0"})
