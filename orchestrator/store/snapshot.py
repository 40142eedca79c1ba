"""Reading another store at one moment, and copying whole runs from it."""

import sqlite3
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Insert,
    Table,
    column,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy import table as lightweight
from sqlalchemy.engine import URL, Engine

from aol.text import joined_lines
from orchestrator.errors import NewerStoreError, StoreError
from orchestrator.store.engine import (
    REVISION,
    connect_file,
    describe_failure,
    describe_url,
    open_engine,
    revision,
    sqlite_file,
    store_url,
    translate_errors,
    wal_file,
)
from orchestrator.store.models import AttemptRow, DriverRow, RunRow, run_tables
from orchestrator.store.schema import require_columns, require_tables
from orchestrator.store.writer import Store

BATCH_ROWS = 20_000  # rows in memory at once
MAX_BYTES = 4 * 2**30  # of a SQLite file
MAX_RUNS = 100_000
SECONDS = 600
ATTACHED = "source"  # the schema name of an attached SQLite file


@contextmanager
def snapshot(location: str | Path | URL) -> Iterator[Store]:
    """Open a store as it is at this moment; nothing is written to it or beside it.

    A SQLite file is copied, and the copy is upgraded to the newest schema. It may be untrusted:
    its size, its schema and the time to read it are limited.

    Raises: StoreError if there is no store, or its version is newer or (on a server) older.
    """
    url = store_url(location)
    file = sqlite_file(url)
    if file is None:
        yield from _server_snapshot(url)
        return
    if not file.is_file():
        raise StoreError(f"there is no store at {file}")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise StoreError(f"{file}: has {size} bytes; {MAX_BYTES} are allowed")
    with ExitStack() as stack:
        copy = stack.enter_context(_temporary_folder(file)) / "store.db"
        stack.enter_context(_errors_about(file, copy))
        _copy_file(file, copy)
        _check_copy(copy, str(file))
        store = stack.enter_context(closing(Store(copy, seconds=SECONDS)))
        _check_schema(store)
        yield store


def copy_run(source: Store, target: Store, key: str, **overrides: str | None) -> None:
    """Replace a run in `target` by that of `source`, in one transaction.

    `overrides` are other values for columns of the run. Raises: StoreError.
    """
    file = sqlite_file(source.url) if sqlite_file(target.url) else None
    with translate_errors(target.url), _connect(target, file) as connection, connection.begin():
        target.renew(connection)
        for table in reversed(run_tables()):
            connection.execute(delete(table).where(table.c.key == key))
        if file:
            for table in run_tables():
                connection.execute(_insert_from_attached(table, key))
        else:
            _copy_rows(source, connection, key)
        _copy_driver(source, connection, key)
        if overrides:
            connection.execute(update(RunRow).where(RunRow.key == key).values(**overrides))


def close_as_single_file(store: Store) -> None:
    """Close a SQLite store without a log or lock beside its file."""
    with translate_errors(store.url), store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    store.close()
    if file := sqlite_file(store.url):
        file.with_name(f"{file.name}.lock").unlink(missing_ok=True)


# Copying a run


@contextmanager
def _connect(target: Store, attached: Path | None) -> Iterator[Connection]:
    """Connect to a store; a given SQLite file is attached as the schema `ATTACHED`."""
    with target.engine.connect() as connection:
        if attached:
            connection.exec_driver_sql(f"ATTACH DATABASE ? AS {ATTACHED}", (str(attached),))
            connection.commit()
        try:
            yield connection
        finally:
            if attached:
                connection.rollback()
                connection.exec_driver_sql(f"DETACH DATABASE {ATTACHED}")


def _insert_from_attached(table: Table, key: str) -> Insert:
    """Return the statement that copies a run's rows of a table from the attached file."""
    names = [one.name for one in table.columns]
    source = lightweight(table.name, *map(column, names), schema=ATTACHED)
    copied = [one.name for one in _copied_columns(table)]
    rows = select(*(source.c[name] for name in copied)).where(source.c.key == key)
    order = (source.c[one.name] for one in table.primary_key)
    return insert(table).from_select(copied, rows.order_by(*order))


def _copied_columns(table: Table) -> list[Column[Any]]:
    """Return the columns except an autoincremented ID, which the target assigns itself."""
    return [one for one in table.columns if one is not table.autoincrement_column]


def _copy_rows(source: Store, target: Connection, key: str) -> None:
    """Copy a run from any database into any other."""
    with source.engine.connect() as connection:
        for table in run_tables():
            with closing(_read_batches(source, connection, table, key)) as batches:
                for rows in batches:
                    target.execute(insert(table), rows)


def _copy_driver(source: Store, target: Connection, key: str) -> None:
    """Copy the driver of a run unless it is there.

    In the target it has ended, because no process there renews its heartbeat.
    """
    query = select(DriverRow.__table__).join(RunRow, RunRow.driver == DriverRow.id)
    with source.engine.connect() as connection:
        found = connection.execute(query.where(RunRow.key == key)).mappings().one_or_none()
    if found and not target.scalar(select(DriverRow.id).where(DriverRow.id == found["id"])):
        ended_at = found["ended_at"] or found["heartbeat_at"]
        target.execute(insert(DriverRow).values(**(dict(found) | {"ended_at": ended_at})))


def _read_batches(
    source: Store, connection: Connection, table: Table, key: str
) -> Generator[list[dict[str, Any]]]:
    columns = _copied_columns(table)
    query = select(*columns).where(table.c.key == key).order_by(*table.primary_key)
    names = [one.name for one in columns]
    with (
        translate_errors(source.url),  # an error here is not one of the target
        connection.execute(query, execution_options={"yield_per": BATCH_ROWS}) as found,
    ):
        for rows in found.partitions():
            yield [dict(zip(names, row, strict=True)) for row in rows]


# Snapshots


@contextmanager
def _temporary_folder(file: Path) -> Iterator[Path]:
    """Create a folder for the copy of a file. Raises: StoreError."""
    with ExitStack() as stack:
        try:
            folder = TemporaryDirectory(prefix="aol-store-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(folder))
        except OSError as error:
            raise _no_room(file, error.strerror) from error
        yield path


def _no_room(file: Path, reason: str | None) -> StoreError:
    place = tempfile.tempdir or "the system's temporary folder"
    return StoreError(
        f"{file}: cannot be copied to {place}: {reason}; set TMPDIR to another folder"
    )


def _copy_file(file: Path, copy: Path) -> None:
    """Make a consistent copy of a SQLite file that may be in use. Raises: StoreError."""
    log = wal_file(file)
    try:
        if not log.exists():  # not in use; opening it normally would create a log
            _back_up(file, copy, "immutable=1")
        if log.exists():  # in use, perhaps only since a moment ago
            _back_up(file, copy, "mode=ro")
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:  # only the copy grows
            raise _no_room(file, str(error)) from error
        raise StoreError(describe_failure(store_url(file), error)) from error


def _back_up(file: Path, copy: Path, options: str) -> None:
    copy.unlink(missing_ok=True)
    with (
        closing(connect_file(file, options)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


@contextmanager
def _errors_about(file: Path, copy: Path) -> Iterator[None]:
    """Name the file in the errors about its copy."""
    try:
        yield
    except StoreError as error:
        raise type(error)(str(error).replace(str(copy), str(file))) from error


def _check_copy(copy: Path, name: str) -> None:
    """Raise StoreError with `name` if its copy is damaged, not a store, or a newer store."""
    url = store_url(copy)
    engine = open_engine(url, SECONDS)
    try:
        with translate_errors(url), engine.connect() as connection:
            require_tables(engine)
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if damage != "ok":
                raise StoreError(f"{name}: is damaged: {joined_lines(str(damage))}")
            _check_revision(engine, name)
    finally:
        engine.dispose()


def _check_schema(store: Store) -> None:
    """Raise StoreError if the newest schema of a copy is not as expected, or it has many runs."""
    with translate_errors(store.url):
        require_columns(store.engine)
    if (count := sum(store.count_by_status().values())) > MAX_RUNS:
        raise StoreError(f"{store.url.database}: has {count} runs; {MAX_RUNS} are allowed")


def _check_revision(engine: Engine, name: str) -> str:
    """Return the schema's revision. Raises: StoreError if it is newer or there is none."""
    if not inspect(engine).has_table(AttemptRow.__tablename__):
        raise StoreError(f"{name}: is not a store of this program: it has no table `attempts`")
    found = revision(engine) or ""
    if found > REVISION:
        raise NewerStoreError(
            f"{name}: was written by a newer version of this program (its schema is {found}, "
            f"the newest supported one is {REVISION}); update the program"
        )
    return found


def _server_snapshot(url: URL) -> Iterator[Store]:
    """Open the store of a server with read-only transactions."""
    name = describe_url(url)
    engine = open_engine(url)
    try:
        with translate_errors(url):
            found = _check_revision(engine, name)
    finally:
        engine.dispose()
    if found != REVISION:
        raise StoreError(
            f"{name}: has the schema {found or 'of no version'}, this program needs {REVISION}; "
            "open it once with this program (`status --store`) to upgrade it"
        )
    with closing(Store(url)) as store:
        store.engine = store.engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        yield store
