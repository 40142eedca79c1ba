"""Reads another store as it is now, and copies whole runs from it, whatever columns they have."""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    JSON,
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

from orchestrator.errors import NewerStoreError, StoreError
from orchestrator.store.engine import (
    BUSY_TIMEOUT_S,
    REVISION,
    describe_failure,
    open_engine,
    revision,
    sqlite_file,
    store_url,
    translate_errors,
)
from orchestrator.store.models import AttemptRow, RunRow, tables_of_runs
from orchestrator.store.writer import Store

BATCH = 20_000  # rows that are in memory at once
ATTACHED = "theirs"  # what another SQLite file is called on a connection


@contextmanager
def snapshot(location: str | Path | URL) -> Iterator[Store]:
    """A store as it is now, to read from; nothing is written to it or beside it.

    A SQLite file is copied aside, and its copy gets the newest schema.

    Raises: StoreError if there is no store, or one of a newer or (on a server) older version.
    """
    url = store_url(location)
    file = sqlite_file(url)
    if file is None:
        yield from _on_server(url)
        return
    if not file.is_file():
        raise StoreError(f"there is no store at {file}")
    with TemporaryDirectory(prefix="aol-store-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "store.db"
        _copy_file(file, copy)
        _require_schema(copy, str(file))
        with closing(Store(copy)) as store:
            yield store


def copy_run(source: Store, target: Store, key: str, **columns: str | None) -> None:
    """Put what `source` has of a run in the place of what `target` has, all of it or nothing.

    `columns` of the run itself get these values instead. Raises: StoreError.
    """
    file = sqlite_file(source.url) if sqlite_file(target.url) else None
    with translate_errors(target.url), _connection(target, file) as writing, writing.begin():
        for table in reversed(tables_of_runs()):
            writing.execute(delete(table).where(table.c.key == key))
        if file:
            for table in tables_of_runs():
                writing.execute(_from_attached(table, key))
        else:
            _copy_rows(source, writing, key)
        if columns:
            writing.execute(update(RunRow).where(RunRow.key == key).values(**columns))


def seal(store: Store) -> None:
    """Close a SQLite store for good: one file that is read without writing beside it."""
    with translate_errors(store.url), store.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=DELETE")
    store.close()
    if file := sqlite_file(store.url):
        file.with_name(f"{file.name}.lock").unlink(missing_ok=True)


@contextmanager
def _connection(target: Store, attached: Path | None) -> Iterator[Connection]:
    """A connection on which `attached`, if there is one, is the schema `ATTACHED`."""
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


def _from_attached(table: Table, key: str) -> Insert:
    """The statement that copies a run's rows of a table from one SQLite file into another."""
    theirs = lightweight(table.name, *(column(name) for name in table.c.keys()), schema=ATTACHED)  # noqa: SIM118
    names = [one.name for one in _copied(table)]
    rows = select(*(theirs.c[name] for name in names)).where(theirs.c.key == key)
    order = (theirs.c[one.name] for one in table.primary_key)
    return insert(table).from_select(names, rows.order_by(*order))


def _copied(table: Table) -> list[Column[Any]]:
    """The columns of a table but for the numbers that a database gives to its rows itself."""
    return [one for one in table.columns if one is not table.autoincrement_column]


def _copy_rows(source: Store, writing: Connection, key: str) -> None:
    """Copy a run from any database into any other."""
    with source.engine.connect() as reading:
        for table in tables_of_runs():
            with closing(_batches(source, reading, table, key)) as batches:
                for rows in batches:
                    _insert(writing, table, rows)


def _batches(
    source: Store, connection: Connection, table: Table, key: str
) -> Generator[list[dict[str, Any]]]:
    """A run's rows of a table."""
    columns = _copied(table)
    query = select(*columns).where(table.c.key == key).order_by(*table.primary_key)
    names = [one.name for one in columns]
    with (
        translate_errors(source.url),  # what goes wrong in here is not the target's fault
        connection.execute(query, execution_options={"yield_per": BATCH}) as found,
    ):
        for rows in found.partitions():
            yield [dict(zip(names, row, strict=True)) for row in rows]


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if not any(isinstance(one.type, JSON) for one in table.columns):
        connection.execute(insert(table), rows)
        return
    for row in rows:  # JSON's null is not SQL's; what is left out is SQL's
        given = {name: value for name, value in row.items() if value is not None}
        connection.execute(insert(table), given)


def _copy_file(file: Path, copy: Path) -> None:
    """A consistent copy of a database that may be in use. Raises: StoreError."""
    log = file.with_name(f"{file.name}-wal")
    try:
        if not log.exists():  # nobody has it open, and opening it would put a log there
            _back_up(file, copy, "immutable=1")
        if log.exists():  # or somebody came in the meantime
            _back_up(file, copy, "mode=ro")
    except (sqlite3.Error, OSError) as error:
        raise StoreError(describe_failure(store_url(file), error)) from error


def _back_up(file: Path, copy: Path, how: str) -> None:
    where = f"file:{quote(str(file))}?{how}"
    copy.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(where, uri=True, timeout=BUSY_TIMEOUT_S)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)


def _require_schema(copy: Path, name: str) -> None:
    """Raises: StoreError about `name` if its copy is no store, or a newer version's."""
    url = store_url(copy)
    engine = open_engine(url)
    try:
        with translate_errors(url), engine.connect() as connection:
            damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if damage != "ok":
                raise StoreError(f"{name}: is damaged: {' '.join(str(damage).split())}")
            _refuse_newer(engine, name)
    except StoreError as error:
        raise type(error)(str(error).replace(str(copy), name)) from error
    finally:
        engine.dispose()


def _refuse_newer(engine: Engine, name: str) -> str:
    """The schema's revision. Raises: StoreError."""
    if not inspect(engine).has_table(AttemptRow.__tablename__):
        raise StoreError(f"{name}: is no store of this program: it has no table `attempts`")
    found = revision(engine) or ""
    if found > REVISION:
        raise NewerStoreError(
            f"{name}: was written by a newer version of this program (its schema is {found}, "
            f"this one knows {REVISION}); update the program"
        )
    return found


def _on_server(url: URL) -> Iterator[Store]:
    """The store of a server in transactions that only read."""
    name = url.render_as_string(hide_password=True)
    engine = open_engine(url)
    try:
        with translate_errors(url):
            found = _refuse_newer(engine, name)
    finally:
        engine.dispose()
    if found != REVISION:
        raise StoreError(
            f"{name}: has the schema {found or 'of no version'} and this program {REVISION}; it "
            "is only read here: open it once with this program (`status --store`) to update it"
        )
    with closing(Store(url)) as store:
        store.engine = store.engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        yield store
