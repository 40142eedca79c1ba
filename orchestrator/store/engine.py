"""Opens the database of the result store and brings its schema up to date."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout
from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
)
from sqlalchemy.pool import NullPool

from orchestrator.errors import QueryError, StoreError

REVISION = "0006"  # the newest migration
BUSY_TIMEOUT_S = 30
DENIED = ("not authorized", "authorization denied")
READING = (  # what SQLite does in a query that reads
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
)
LOOKING = ("table_info", "table_xinfo", "table_list", "index_list", "index_info")  # pragmas
READ_ONLY = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY"}
DRIVERS = {"postgresql": "postgresql+psycopg"}  # the one that the extra installs
ADVICE = {
    "No module named 'psycopg'": 'install it: pip install "psycopg[binary]>=3.2"',
    "database is locked": "another program holds it: end that one, then try again",
    "disk is full": "free some space, then try again",
    "readonly database": "it may only be read here: make it and its folder writable",
}
OTHERWISE = "repair it, or choose another with --store"


def store_url(location: str | Path | URL) -> URL:
    """The SQLAlchemy URL of a path or URL. Raises: StoreError."""
    if isinstance(location, URL):
        return location
    if isinstance(location, Path) or "://" not in location:
        return URL.create("sqlite", database=str(Path(location).expanduser().absolute()))
    hidden = re.sub(r"(?<=:)[^:@/]+(?=@)", "***", location)  # no password in a message
    try:
        url = make_url(location)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError) as error:
        reason = str(error).replace(location, hidden)
        raise StoreError(f"--store {hidden}: is no database URL: {reason}") from error
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"--store {hidden}: {backend} is not offered; use sqlite or postgresql")
    return url.set(drivername=DRIVERS.get(url.drivername, url.drivername))


def open_engine(url: URL) -> Engine:
    """Connections to the database; a SQLite file in WAL mode. Raises: StoreError."""
    file = sqlite_file(url)
    try:
        if url.get_backend_name() != "sqlite":
            return create_engine(url)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
        if file and _read_only(file):
            return create_engine(url, creator=partial(_connect_to_read, file), poolclass=NullPool)
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    except (OSError, ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(describe_failure(url, error)) from error

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def sqlite_file(url: URL) -> Path | None:
    """The file of a SQLite database, None for any other."""
    in_memory = url.database in (None, "", ":memory:") or "uri" in url.query
    return None if url.get_backend_name() != "sqlite" or in_memory else Path(url.database or "")


def exists(location: str | Path) -> bool:
    """Whether there may be a database: a file that is there, or a server. Raises: StoreError."""
    file = sqlite_file(store_url(location))
    return file is None or file.exists()


def require_writable(url: URL, which: str = "") -> None:
    """Raises: StoreError, which says `which` database, if it is a file that may only be read."""
    file = sqlite_file(url)
    if file and _read_only(file):
        raise StoreError(describe_failure(url, OSError(f"readonly database{which}")))


def _read_only(file: Path) -> bool:
    return file.exists() and not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK))


def _connect_to_read(file: Path) -> sqlite3.Connection:
    """A connection to a file that may only be read.

    WAL mode wants to write beside the database even to read it. Where that is impossible and no
    log is left over, nobody is writing either: the file is as good as immutable.
    """
    log = file.with_name(f"{file.name}-wal")
    logged = log.exists() and log.stat().st_size > 0
    how = "mode=ro" if logged or os.access(file.parent, os.W_OK) else "immutable=1"
    return sqlite3.connect(f"file:{quote(str(file))}?{how}", uri=True, timeout=BUSY_TIMEOUT_S)


def revision(engine: Engine) -> str | None:
    """The newest migration that the schema has had; None if it never had one."""
    if not inspect(engine).has_table("alembic_version"):
        return None
    with engine.connect() as connection:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if found is None else str(found)


def outdated(engine: Engine) -> bool:
    """Whether the schema is not that of `REVISION`."""
    return revision(engine) != REVISION


def migrate(engine: Engine) -> None:
    """Bring the schema to `REVISION`, all of it or nothing.

    Raises: StoreError if the schema is newer than this program.
    """
    from alembic import command  # takes half a second, and there is seldom anything to do
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":  # Python would commit after each table
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"{engine.url}: was written by a newer version of this program ({error}); "
                "update the program or choose another --store"
            ) from error


def run_query(engine: Engine, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The columns and rows of somebody's SQL: one statement, which may read only.

    Raises: QueryError for what the database says against it, DatabaseError.
    """
    with engine.connect() as connection:
        connection.exec_driver_sql(READ_ONLY[engine.dialect.name])
        driver: Any = connection.connection.driver_connection
        if engine.dialect.name == "sqlite":
            driver.set_authorizer(_may_read)
        else:
            driver.prepare_threshold = 0  # a second statement cannot be prepared with the first
        try:
            found = connection.exec_driver_sql(sql)
            if not found.returns_rows:
                raise QueryError("the query returns no rows; only reading is allowed")
            return list(found.keys()), [tuple(row) for row in found]
        except DBAPIError as error:
            said = " ".join(str(error.orig).split())
            advice = "; only reading is allowed" if said in DENIED else ""
            raise QueryError(said + advice) from error
        finally:
            connection.invalidate()  # nobody else gets one that only reads


def _may_read(action: int, name: str | None, *_: str | None) -> int:
    """Whether SQLite may do that for somebody: `query_only` lets through more than reading."""
    looks = action == sqlite3.SQLITE_PRAGMA and name in LOOKING
    return sqlite3.SQLITE_OK if looks or action in READING else sqlite3.SQLITE_DENY


@contextmanager
def translate_errors(url: URL) -> Iterator[None]:
    """Turns what a database raises into one line; broken constraints are mistakes of ours."""
    try:
        yield
    except IntegrityError:
        raise
    except (DatabaseError, OSError) as error:
        raise StoreError(describe_failure(url, error)) from error


def describe_failure(url: URL, error: Exception) -> str:
    """One line about a database that cannot be used, with advice; no password in it."""
    cause = " ".join(str(getattr(error, "orig", None) or error).split())
    advice = next((text for sign, text in ADVICE.items() if sign in cause), OTHERWISE)
    return f"the store {url.render_as_string(hide_password=True)} cannot be used: {cause}; {advice}"


ADVISORY = 2208_03160  # what the lock is called in PostgreSQL, beside the schema's name


@contextmanager
def sole_writer(engine: Engine, url: URL) -> Iterator[None]:
    """Nobody else is in this block with the same database.

    Raises: StoreError, at once, if somebody is.
    """
    file = sqlite_file(url)
    if file:
        try:
            with FileLock(f"{file}.lock", timeout=0):
                yield
        except Timeout:
            raise _taken(url) from None
    elif engine.dialect.name == "postgresql":
        with _advisory_lock(engine, url):
            yield
    else:
        yield  # a database in memory has no second driver


@contextmanager
def _advisory_lock(engine: Engine, url: URL) -> Iterator[None]:
    query = text("SELECT pg_try_advisory_lock(:name, hashtext(current_schema()))")
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # the lock lives as long as this connection, which no pool may keep
        if not connection.execute(query, {"name": ADVISORY}).scalar():
            raise _taken(url)
        yield


def _taken(url: URL) -> StoreError:
    shown = sqlite_file(url) or url.render_as_string(hide_password=True)
    return StoreError(
        f"another `run` is writing to {shown}; wait for it (`status` shows it), or choose another "
        "--store"
    )
