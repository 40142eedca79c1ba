"""The lock that keeps a second driver away from a store; it ends with its process."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout
from sqlalchemy import text
from sqlalchemy.engine import URL, Engine

from orchestrator.errors import StoreError
from orchestrator.store.engine import describe_url, sqlite_file

ADVISORY_LOCK = 2208_03160  # first key of PostgreSQL's lock; the second is the schema's name


@contextmanager
def exclusive_lock(engine: Engine, url: URL) -> Iterator[None]:
    """Hold the database's lock, without waiting for it.

    Raises: StoreError if another process holds it.
    """
    file = sqlite_file(url)
    if file:
        try:
            with FileLock(f"{file}.lock", timeout=0):
                yield
        except Timeout:
            raise _locked(url) from None
    elif engine.dialect.name == "postgresql":
        with _advisory_lock(engine, url):
            yield
    else:
        yield  # no other process can open a database in memory


@contextmanager
def _advisory_lock(engine: Engine, url: URL) -> Iterator[None]:
    query = text("SELECT pg_try_advisory_lock(:key, hashtext(current_schema()))")
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.detach()  # the lock is held until this connection closes, so no pool may keep it
        if not connection.execute(query, {"key": ADVISORY_LOCK}).scalar():
            raise _locked(url)
        yield


def _locked(url: URL) -> StoreError:
    return StoreError(
        f"another `run` is writing to {describe_url(url)}; wait for it (`status` shows it), or "
        "choose another --store"
    )
