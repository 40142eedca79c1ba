"""The database of the result store.

Its location, connections, schema version and errors, and the queries of users.
"""

import math
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import URL, CursorResult, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from aol.errors import first_line
from aol.text import joined_lines
from orchestrator.errors import QueryError, StoreError
from orchestrator.masking import mask_secrets
from orchestrator.store.columns import DamagedValueError, load_json
from orchestrator.store.schema import require_tables
from orchestrator.store.watch import INTERRUPTED, limit_time, watch_engine

URL_FORM = "postgresql://USER@HOST:PORT/DATABASE"
REVISION = "0008"  # the newest migration
REVISION_NAME = re.compile(r"\d{4}")
BUSY_TIMEOUT_S = 30
DIALECTS = {"postgresql": "postgresql+psycopg"}  # with the client library that the extra installs

QUERY_SECONDS = 60
QUERY_ROWS = 1_000_000
QUERY_BYTES = 256 * 2**20  # of text and byte strings
READ_ONLY = {
    "sqlite": ("PRAGMA query_only = ON",),
    "postgresql": (
        "SET TRANSACTION READ ONLY",
        f"SET LOCAL statement_timeout = '{QUERY_SECONDS}s'",
    ),
}
TIMED_OUT = (INTERRUPTED, "canceling statement due to statement timeout")
READ_ACTIONS = (  # the SQLite actions of a query that only reads
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)
READ_PRAGMAS = ("table_info", "table_xinfo", "table_list", "index_list", "index_info")
DENIED = ("not authorized", "authorization denied")  # SQLite's messages about other actions

ADVICE = {  # by a part of the database's message
    "No module named 'psycopg'": 'install it: pip install "psycopg[binary]>=3.2"',
    "database is locked": "another program has locked it; stop that program and try again",
    "disk is full": "free some space and try again",
    INTERRUPTED: "reading it takes longer than is allowed",
    "readonly database": "make the file and its folder writable",
    "removed or replaced": "put it back",
}
DEFAULT_ADVICE = "repair it, or choose another with --store"


# Locations


def store_url(location: str | Path | URL) -> URL:
    """Return the SQLAlchemy URL of a path or URL. Raises: StoreError."""
    if isinstance(location, URL):
        return location
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(Path(location).expanduser().absolute()))
    try:
        url = make_url(location)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise _invalid_url(location) from None  # its message may have a part of a password
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"--store {backend}://...: is not supported; use sqlite or postgresql")
    if backend == "postgresql" and ("@" in (url.host or "") or re.search(r"\s", location)):
        raise _invalid_url(location)
    return url.set(drivername=DIALECTS.get(url.drivername, url.drivername))


def _invalid_url(location: str) -> StoreError:
    """Return the error for a URL of which any part may be a password."""
    return StoreError(
        f"--store {location.partition('://')[0]}://...: is not a valid URL; write {URL_FORM}, "
        "with a password as USER:PASSWORD and in it %40 for @, %2F for /, %20 for a space, %25 "
        "for %"
    )


def describe_url(url: URL) -> str:
    """Return the location of a store for messages: a path, or a URL without passwords."""
    if sqlite_file(url):
        return str(url.database)
    return mask_secrets(url.render_as_string(hide_password=True))


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite database, None for any other database.

    Symbolic links are resolved, as SQLite does: a database has one log and one lock.
    """
    in_memory = url.database in (None, "", ":memory:") or "uri" in url.query
    if url.get_backend_name() != "sqlite" or in_memory:
        return None
    return Path(url.database or "").resolve()


def wal_file(file: Path) -> Path:
    """Return the write-ahead log of a SQLite file."""
    return file.with_name(f"{file.name}-wal")


def identity(url: URL) -> tuple[int, int] | None:
    """Return the device and the inode of a SQLite file, None if there is no file."""
    file = sqlite_file(url)
    if file is None or not file.exists():
        return None
    found = file.stat()
    return found.st_dev, found.st_ino


def exists(location: str | Path) -> bool:
    """Return whether the file of the store exists; True for a server. Raises: StoreError."""
    file = sqlite_file(store_url(location))
    return file is None or file.exists()


# Connections


def open_engine(url: URL, seconds: float = math.inf) -> Engine:
    """Return an engine for the database; a SQLite file is in WAL mode.

    On a SQLite file, statements are interrupted `seconds` after the connection opened.

    Raises: StoreError.
    """
    file = sqlite_file(url)
    create = partial(create_engine, url, json_deserializer=load_json)
    try:
        if url.get_backend_name() != "sqlite":
            return create(pool_pre_ping=True)  # after a restart of the server
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        if file and _is_read_only(file):
            engine = create(creator=partial(_connect_read_only, file), poolclass=NullPool)
            watch_engine(engine, seconds)
            return engine
        engine = create(connect_args={"timeout": BUSY_TIMEOUT_S})
    except (OSError, ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(describe_failure(url, error)) from error
    watch_engine(engine, seconds)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def require_writable(url: URL, detail: str = "") -> None:
    """Raise StoreError if the database is a read-only file; `detail` is part of the message."""
    file = sqlite_file(url)
    if file and _is_read_only(file):
        raise StoreError(describe_failure(url, OSError(f"readonly database{detail}")))


def connect_file(file: Path, options: str) -> sqlite3.Connection:
    """Connect to a SQLite file with the options of its URI, such as `mode=ro`."""
    uri = f"file:{quote(os.fsencode(file))}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S)


def _is_read_only(file: Path) -> bool:
    return file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def _connect_read_only(file: Path) -> sqlite3.Connection:
    """Connect to a read-only file.

    In WAL mode SQLite writes beside the database even to read it. If it cannot and there is no
    log, then nobody is writing and the file can be opened as immutable.
    """
    log = wal_file(file)
    has_log = log.exists() and log.stat().st_size > 0
    return connect_file(
        file, "mode=ro" if has_log or os.access(file.parent, os.W_OK) else "immutable=1"
    )


# The schema


def revision(engine: Engine) -> str | None:
    """Return the newest migration applied to the schema; None if there was none.

    Raises: DamagedValueError.
    """
    require_tables(engine)
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
    if len(found) != 1 or not REVISION_NAME.fullmatch(str(found[0])):
        raise DamagedValueError(f"its version is {', '.join(map(str, found)) or 'missing'}")
    return str(found[0])


def migrate(engine: Engine) -> None:
    """Upgrade the schema to `REVISION` in one transaction.

    Raises: StoreError if the schema is newer than this program.
    """
    from alembic import command  # takes half a second and is seldom needed
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    folder = Path(__file__).parent / "migrations"
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":  # otherwise Python commits after each table
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"{describe_url(engine.url)}: was written by a newer version of this program "
                f"({error}); update the program or choose another --store"
            ) from error
        except (ArithmeticError, LookupError, TypeError, ValueError, IntegrityError) as error:
            cause = first_line(error)
            raise DamagedValueError(f"its schema cannot be upgraded: {cause}") from error


# Queries of users


def run_query(engine: Engine, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and rows of one SQL statement, which may only read.

    Raises: QueryError if the database rejects it, DatabaseError.
    """
    with engine.connect() as connection:
        for statement in READ_ONLY[engine.dialect.name]:
            connection.exec_driver_sql(statement)
        driver: Any = connection.connection.driver_connection
        if engine.dialect.name == "sqlite":
            driver.set_authorizer(_authorize)
            limit_time(driver, QUERY_SECONDS)
        else:
            driver.prepare_threshold = 0  # only a single statement can be prepared
        try:
            found = connection.exec_driver_sql(sql)
            if not found.returns_rows:
                raise QueryError("the query returns no rows; only reading is allowed")
            return list(found.keys()), list(_limited_rows(found))
        except DBAPIError as error:
            message = joined_lines(str(error.orig))
            advice = "; only reading is allowed" if message in DENIED else ""
            if message in TIMED_OUT:
                message = f"the query takes longer than {QUERY_SECONDS} s"
            raise QueryError(message + advice) from error
        except UnicodeError as error:
            raise QueryError(f"the query is not valid text: {error}") from error
        finally:
            connection.invalidate()  # the pool must not reuse a read-only connection


def _limited_rows(found: CursorResult[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows. Raises: QueryError if they are too many or too large."""
    size = 0
    for count, row in enumerate(found, start=1):
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if count > QUERY_ROWS or size > QUERY_BYTES:
            raise QueryError(
                f"the result has more than {QUERY_ROWS} rows or {QUERY_BYTES // 2**20} MiB; "
                "add a LIMIT"
            )
        yield tuple(row)


def _authorize(action: int, name: str | None, *_: str | None) -> int:
    """Allow SQLite actions that read; `query_only` alone allows a few others."""
    reads = action in READ_ACTIONS or (action == sqlite3.SQLITE_PRAGMA and name in READ_PRAGMAS)
    return sqlite3.SQLITE_OK if reads else sqlite3.SQLITE_DENY


# Errors


@contextmanager
def translate_errors(url: URL) -> Iterator[None]:
    """Raise StoreError for database errors, but not for broken constraints, which are bugs."""
    try:
        yield
    except IntegrityError:
        raise
    except DamagedValueError as error:
        name = describe_url(url)
        raise StoreError(f"the store {name} is damaged: {error}; {DEFAULT_ADVICE}") from error
    except (DBAPIError, PoolTimeoutError, OSError) as error:
        raise StoreError(describe_failure(url, error)) from error


def describe_failure(url: URL, error: Exception) -> str:
    """Return one line with the cause of an error and advice, but without a password."""
    cause = joined_lines(str(getattr(error, "orig", None) or error))
    advice = next((advice for part, advice in ADVICE.items() if part in cause), DEFAULT_ADVICE)
    return f"the store {describe_url(url)} cannot be used: {cause}; {advice}"
