"""Limits of the SQL that a SQLite file can make us run: its time and the sizes of its values.

A file from others may hold any schema, and a query any loop without an end.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine, ExceptionContext

INSTRUCTIONS = 20_000  # of SQLite between two checks, less than a millisecond
INTERRUPTED = "interrupted"  # SQLite's message
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 64 * 2**20,  # bytes of a value or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 2**20,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_ATTACHED: 1,
}

_raised: list[BaseException] = []  # by a signal's handler, in the main thread


def watch_engine(engine: Engine, seconds: float) -> None:
    """Limit the connections of a SQLite engine, each to `seconds`; signals interrupt them."""

    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA trusted_schema = OFF")
        for limit, value in LIMITS.items():
            connection.setlimit(limit, value)
        limit_time(connection, seconds)

    @event.listens_for(engine, "handle_error")
    def _failed(context: ExceptionContext) -> None:
        if _raised and str(context.original_exception) == INTERRUPTED:
            raise _raised.pop()


def limit_time(connection: sqlite3.Connection, seconds: float) -> None:
    """Interrupt the statements of a connection `seconds` from now, and on a signal."""
    connection.set_progress_handler(_checks(time.monotonic() + seconds), INSTRUCTIONS)


def _checks(end: float) -> Callable[[], bool]:
    """Return the function that SQLite calls while it runs a statement: true interrupts it.

    Python runs the handler of a signal only between its own instructions: here. SQLite makes an
    error of its own of what the handler raises. A generator can keep it, as it is resumed inside
    its `try`; a function would be left before its first line.
    """

    def generate() -> Iterator[bool]:
        while True:
            try:
                yield time.monotonic() > end
            except GeneratorExit:
                raise
            except BaseException as error:
                _raised[:] = [error]
                yield True

    return generate().__next__
