"""Keeps a second driver away from a store. The lock ends with its process, however that dies."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from orchestrator.store.database import StoreError, sqlite_file

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
