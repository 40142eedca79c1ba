"""The lock that keeps a second driver away from a store; it ends with its process."""

import logging
from contextlib import ExitStack
from typing import Self

from filelock import FileLock, Timeout
from sqlalchemy import text
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from orchestrator.errors import StoreError, StoreLostError
from orchestrator.store.engine import describe_url, sqlite_file

logger = logging.getLogger(__name__)

ADVISORY_LOCK = 2208_03160  # first key of PostgreSQL's lock; the second is the schema's name


class StoreLock:
    """The lock of a database, held inside a `with` block.

    It is a file beside a SQLite database, and an advisory lock of a connection to PostgreSQL. No
    other process can open a database in memory.
    """

    def __init__(self, engine: Engine, url: URL) -> None:
        self._engine, self._url = engine, url
        file = sqlite_file(url)
        self._file = FileLock(f"{file}.lock", timeout=0) if file else None
        self._connection: Connection | None = None
        self._released = False

    def __enter__(self) -> Self:
        """Take the lock without waiting for it.

        Raises: StoreError if another process holds it.
        """
        try:
            if self._file:
                self._file.acquire()
            elif self._engine.dialect.name == "postgresql" and not self._try_advisory_lock():
                raise in_use(self._url)
        except Timeout:
            raise in_use(self._url) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._released = True
        if self._file:
            self._file.release()
        self._disconnect()

    def renew(self) -> None:
        """Take the lock again if the server has lost it, as it does when it restarts.

        If it cannot be taken, the next call tries again. Until then nobody else can write: see
        `Store.renew`.
        """
        if self._engine.dialect.name != "postgresql" or self._released or self._is_held():
            return
        self._disconnect()
        outcome = "taken again" if self._try_advisory_lock() else "not free"
        logger.warning("the lock of the store was lost and is %s", outcome)

    def _is_held(self) -> bool:
        """Return whether the connection still exists, and with it the lock."""
        try:
            return self._connection is not None and bool(self._connection.scalar(text("SELECT 1")))
        except DBAPIError:
            return False

    def _try_advisory_lock(self) -> bool:
        query = text("SELECT pg_try_advisory_lock(:key, hashtext(current_schema()))")
        with ExitStack() as stack:
            connection = stack.enter_context(self._engine.connect())
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()  # held until this connection closes, so no pool may keep it
            if not connection.scalar(query, {"key": ADVISORY_LOCK}):
                return False
            stack.pop_all()
        self._connection = connection
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def in_use(url: URL) -> StoreError:
    """Return the error for a store that another driver uses."""
    return StoreError(
        f"another driver is writing to {describe_url(url)}; wait for it (`status` shows it), or "
        "choose another --store"
    )


def lost(url: URL) -> StoreLostError:
    """Return the error for a store that another driver took over."""
    return StoreLostError(
        f"another driver took over {describe_url(url)}, so this one no longer writes to it; when "
        "that one has ended (`status` shows it), the same command continues what is left"
    )
