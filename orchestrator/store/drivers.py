"""The drivers of a store: which one may write, and which ones are alive.

A driver has a row, with its process and a heartbeat. Each of its write transactions renews the
heartbeat first and fails if the row is closed, because then another driver took over. The row is
locked from there to the commit, so that a takeover waits for the transaction.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

import psutil
from sqlalchemy import ColumnElement, String, func, insert, select, update
from sqlalchemy.engine import Connection

from orchestrator.store.models import DriverRow

HEARTBEAT_S = 5.0  # between the heartbeats of a driver
HEARTBEAT_TIMEOUT_S = 60.0  # without a heartbeat for this long, a driver may be dead
WATCH_S = 2 * HEARTBEAT_S + 2.0  # the time in which a live driver certainly has a heartbeat
POLL_S = 0.25


@dataclass(frozen=True)
class Driver:
    """A driver whose row is open; `age_s` is that of its heartbeat by the database's clock."""

    id: str
    host: str
    process: int
    beats: int
    age_s: float

    @property
    def here(self) -> bool:
        """Return whether it is this process."""
        return (self.host, self.process) == (socket.gethostname(), os.getpid())

    @property
    def gone(self) -> bool:
        """Return whether it was a process of this machine that has ended."""
        return self.host == socket.gethostname() and not _process_exists(self.process)


class DriverWatch:
    """Finds the drivers that are alive.

    Clocks of machines differ. If the clock says that a heartbeat is old, or in the future, the
    driver is alive only if its heartbeats go on.
    """

    def __init__(self, read: Callable[[], Sequence[Driver]], *, trust_clock: bool = True) -> None:
        """`read` returns the drivers. Without `trust_clock`, each heartbeat has to be seen."""
        self._read, self._trust_clock = read, trust_clock
        self._seen: dict[str, tuple[int, float, bool]] = {}  # beats, since when, after others

    def alive(self) -> frozenset[str]:
        """Return the IDs of the live drivers, which may take `WATCH_S` seconds."""
        while True:
            found = {driver.id: self._judge(driver) for driver in self._read()}
            if None not in found.values():
                return frozenset(name for name, alive in found.items() if alive)
            time.sleep(POLL_S)

    def _judge(self, driver: Driver) -> bool | None:
        """Return whether a driver is alive, or None while that is not known."""
        if driver.gone:
            return False
        if self._trust_clock and abs(driver.age_s) < HEARTBEAT_TIMEOUT_S:
            return True
        now = time.monotonic()
        beats, since, beating = self._seen.get(driver.id, (driver.beats, now, False))
        if driver.beats != beats:
            since, beating = now, True
        self._seen[driver.id] = driver.beats, since, beating
        if now - since > WATCH_S:
            return False
        return True if beating else None


def open_drivers(connection: Connection) -> list[Driver]:
    """Return the drivers that have not ended properly."""
    now = _now(connection).label("now")
    query = select(DriverRow.__table__, now).where(DriverRow.ended_at.is_(None))
    return [
        Driver(row.id, row.host, row.process, row.beats, _seconds(row.heartbeat_at, row.now))
        for row in connection.execute(query)
    ]


def add_driver(connection: Connection) -> str:
    """Add this process as a driver and return its ID."""
    host, process = socket.gethostname(), os.getpid()
    name = f"{host}:{process}:{uuid4().hex[:8]}"  # a restarted container has the same process IDs
    now = _now(connection)
    values = {"id": name, "host": host, "process": process, "beats": 0}
    connection.execute(insert(DriverRow).values(**values, started_at=now, heartbeat_at=now))
    return name


def renew_heartbeat(connection: Connection, driver: str) -> bool:
    """Renew a driver's heartbeat; return False if another driver took over."""
    beat = {"heartbeat_at": _now(connection), "beats": DriverRow.beats + 1}
    own = update(DriverRow).where(DriverRow.id == driver, DriverRow.ended_at.is_(None))
    return connection.execute(own.values(**beat)).rowcount == 1


def end_drivers(connection: Connection, driver: str | None = None) -> None:
    """Close the row of a driver, or those of all drivers."""
    rows = update(DriverRow).where(DriverRow.ended_at.is_(None))
    if driver is not None:
        rows = rows.where(DriverRow.id == driver)
    connection.execute(rows.values(ended_at=_now(connection)))


def _now(connection: Connection) -> ColumnElement[str]:
    """Return the expression for the time by the clock of the database."""
    if connection.dialect.name == "postgresql":
        utc = func.timezone("UTC", func.clock_timestamp())
        return func.to_char(utc, 'YYYY-MM-DD"T"HH24:MI:SS.MS"+00:00"', type_=String)
    return func.strftime("%Y-%m-%dT%H:%M:%f+00:00", "now", type_=String)


def _seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _process_exists(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError):  # ValueError: it is no number of a process
        return False
