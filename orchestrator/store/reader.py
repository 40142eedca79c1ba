"""Reading from the result store."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sqlalchemy import case, func, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from orchestrator.store.drivers import Driver, DriverWatch, open_drivers
from orchestrator.store.engine import (
    REVISION,
    identity,
    migrate,
    open_engine,
    require_writable,
    revision,
    run_query,
    store_url,
    translate_errors,
)
from orchestrator.store.lock import StoreLock
from orchestrator.store.models import (
    LAST_EPOCH,
    RECORDED_EPOCHS,
    RUN_COLUMNS,
    AttemptRow,
    DriverRow,
    EpochRow,
    MarginRow,
    MetricRow,
    RunRow,
    to_attempt,
    to_stored_run,
)
from orchestrator.store.records import OPEN, Attempt, MetricRange, Status, StoredRun

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
LAST_CHANGE = func.coalesce(RunRow.finished_at, RunRow.started_at, RunRow.created_at)
VALUES_PER_QUERY = 5000  # SQLite allows 32,766 in a statement, PostgreSQL 65,535


class StoreReader:
    """An open result store; every method may raise StoreError."""

    def __init__(
        self, location: str | Path | URL, *, exclusive: bool = False, seconds: float = math.inf
    ) -> None:
        """Open the database at a path or URL; create or upgrade it if necessary.

        `exclusive` keeps other drivers out until `close`. On a SQLite file, statements are
        interrupted `seconds` after the connection opened.

        Raises: StoreError, also if another driver uses the store.
        """
        self.url, self.exclusive = store_url(location), exclusive
        if exclusive:
            require_writable(self.url)
        self.engine = open_engine(self.url, seconds)
        with translate_errors(self.url), ExitStack() as stack:
            outdated = revision(self.engine) != REVISION
            if outdated:
                require_writable(self.url, " with an older schema")
            self._lock = StoreLock(self.engine, self.url)
            if exclusive or outdated:
                stack.enter_context(self._lock)
            if outdated:
                migrate(self.engine)
            self._held = stack.pop_all() if exclusive else ExitStack()
        self._identity = identity(self.url)
        self._driver: str | None = None  # the ID of this process once it is a driver
        self._watch = DriverWatch(self._other_drivers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock and close the connections."""
        self._held.close()
        self.engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with translate_errors(self.url):
            if identity(self.url) != self._identity:  # SQLite goes on with the file it has opened
                raise OSError("its file was removed or replaced")
            with Session(self.engine) as session, session.begin():
                yield session

    def _other_drivers(self) -> list[Driver]:
        with self._session() as session:
            drivers = open_drivers(session.connection())
        return [driver for driver in drivers if driver.id != self._driver]

    def runs(
        self,
        keys: Iterable[str] | None = None,
        *,
        ids: Iterable[int] | None = None,
        digests: Iterable[str] | None = None,
        profiles: Iterable[str] | None = None,
        statuses: Iterable[Status] | None = None,
    ) -> list[StoredRun]:
        """Return the runs that meet every given condition, by run ID and seed."""
        conditions = (
            (RunRow.key, keys),
            (RunRow.run_id, ids),
            (RunRow.digest, digests),
            (RunRow.profile, profiles),
            (RunRow.status, statuses),
        )
        query = (
            select(*RUN_COLUMNS, LAST_EPOCH.label("epoch"), RECORDED_EPOCHS.label("recorded"))
            .add_columns(DriverRow.heartbeat_at)
            .outerjoin(DriverRow, DriverRow.id == RunRow.driver)
        )
        chunked = [
            [column.in_(chunk) for chunk in chunks(given)]
            for column, given in conditions
            if given is not None
        ]
        with self._session() as session:
            rows = [
                row for chosen in product(*chunked) for row in session.execute(query.where(*chosen))
            ]
        alive = {self._driver} if self._driver else set()
        if any(row.status in OPEN and row.driver != self._driver for row in rows):
            alive |= self._watch.alive()
        with translate_errors(self.url):
            found = [to_stored_run(row, alive) for row in rows]
        return sorted(found, key=lambda run: (run.run_id, run.seed, run.created_at, run.key))

    def keys_by_priority(self, limit: int, profile: str | None = None) -> list[str]:
        """Return at most `limit` keys: of open runs, then unfinished ones, then the newest done."""
        rank = case(
            (RunRow.status.in_(OPEN), 0),
            (RunRow.status == Status.DONE, 2),
            else_=1,
        )
        query = select(RunRow.key).order_by(rank, LAST_CHANGE.desc(), RunRow.key).limit(limit)
        if profile is not None:
            query = query.where(RunRow.profile == profile)
        with self._session() as session:
            return list(session.scalars(query))

    def count_by_status(self, profile: str | None = None) -> dict[Status, int]:
        """Return the number of runs of each status, of all runs or of one profile."""
        query = select(RunRow.status, func.count()).group_by(RunRow.status)
        if profile is not None:
            query = query.where(RunRow.profile == profile)
        with self._session() as session:
            return {Status(status): count for status, count in session.execute(query)}

    def profiles(self) -> list[str]:
        """Return the profiles that have runs."""
        with self._session() as session:
            return sorted(session.scalars(select(RunRow.profile).distinct()))

    def newest_profile(self, among: Iterable[str] | None = None) -> str | None:
        """Return the profile that was trained last, of all or of these; None if there is none."""
        ended = RunRow.status.not_in(OPEN)
        query = select(RunRow.profile).order_by(
            ended, LAST_CHANGE.desc(), RunRow.run_id, RunRow.seed
        )
        if among is not None:
            query = query.where(RunRow.profile.in_(list(among)))
        with self._session() as session:
            return session.scalar(query.limit(1))

    def metrics(
        self, key: str, *, after: int = 0, until: int | None = None
    ) -> dict[int, dict[str, float]]:
        """Return a run's metrics by epoch, from after `after` up to and including `until`."""
        query = (
            select(MetricRow.epoch, MetricRow.name, MetricRow.value)
            .where(MetricRow.key == key, MetricRow.epoch > after)
            .order_by(MetricRow.epoch, MetricRow.name)
        )
        if until is not None:
            query = query.where(MetricRow.epoch <= until)
        epochs: dict[int, dict[str, float]] = {}
        with self._session() as session:
            for epoch, name, value in session.execute(query):
                epochs.setdefault(epoch, {})[name] = value
        return epochs

    def latest_metrics(
        self, keys: Iterable[str], *, epochs: int = 1, names: Iterable[str] | None = None
    ) -> dict[str, dict[int, dict[str, float]]]:
        """Return the metrics of each run's last epochs, all or some by name, by key and epoch."""
        query = (
            select(MetricRow.key, MetricRow.epoch, MetricRow.name, MetricRow.value)
            .join(RunRow, RunRow.key == MetricRow.key)
            .where(MetricRow.epoch > LAST_EPOCH - epochs)
        )
        if names is not None:
            query = query.where(MetricRow.name.in_(list(names)))
        found: dict[str, dict[int, dict[str, float]]] = {}
        with self._session() as session:
            for chunk in chunks(keys):
                for key, epoch, name, value in session.execute(query.where(RunRow.key.in_(chunk))):
                    found.setdefault(key, {}).setdefault(epoch, {})[name] = value
        return found

    def metric_ranges(
        self, keys: Iterable[str], names: Iterable[str]
    ) -> dict[str, dict[int, MetricRange]]:
        """Return the ranges of metrics by name and epoch, over the runs that have the epoch."""
        value = MetricRow.value
        summary = (func.count(), func.sum(value), func.min(value), func.max(value))
        query = (
            select(MetricRow.name, MetricRow.epoch, *summary)
            .where(MetricRow.name.in_(list(names)))
            .group_by(MetricRow.name, MetricRow.epoch)
            .order_by(MetricRow.epoch)
        )
        found: dict[str, dict[int, list[tuple[int, float, float, float]]]] = {}
        with self._session() as session:
            for chunk in chunks(keys):
                chosen = query.where(MetricRow.key.in_(chunk))
                for name, epoch, count, total, low, high in session.execute(chosen):
                    parts = found.setdefault(name, {}).setdefault(epoch, [])
                    parts.append((count, total, low, high))
        return {
            name: {epoch: _join_ranges(parts) for epoch, parts in sorted(epochs.items())}
            for name, epochs in found.items()
        }

    def recorded_at(self, key: str) -> dict[int, str]:
        """Return the time at which each epoch was recorded."""
        query = select(EpochRow.epoch, EpochRow.recorded_at).where(EpochRow.key == key)
        with self._session() as session:
            return {row.epoch: row.recorded_at for row in session.execute(query)}

    def last_recorded_at(self, keys: Iterable[str]) -> dict[str, str]:
        """Return the time at which the last epoch of each run was recorded, by key."""
        query = (
            select(EpochRow.key, EpochRow.recorded_at)
            .join(RunRow, RunRow.key == EpochRow.key)
            .where(EpochRow.epoch == LAST_EPOCH)
        )
        with self._session() as session:
            return {
                row.key: row.recorded_at
                for chunk in chunks(keys)
                for row in session.execute(query.where(RunRow.key.in_(chunk)))
            }

    def final(
        self, keys: Iterable[str], *, epoch: int | None = None
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of the finished runs among `keys`, by key.

        They are those of the last epoch, or of `epoch`, counted from 1.
        """
        query = (
            select(MetricRow.key, MetricRow.name, MetricRow.value)
            .join(RunRow, RunRow.key == MetricRow.key)
            .where(
                RunRow.status == Status.DONE,
                MetricRow.epoch == (RunRow.epochs if epoch is None else epoch),
            )
        )
        found: dict[str, dict[str, float]] = {}
        with self._session() as session:
            for chunk in chunks(keys):
                for key, name, value in session.execute(query.where(RunRow.key.in_(chunk))):
                    found.setdefault(key, {})[name] = value
        return found

    def attempts(self, key: str) -> list[Attempt]:
        """Return every attempt of a run, the first one first."""
        query = select(AttemptRow).where(AttemptRow.key == key).order_by(AttemptRow.id)
        with self._session() as session:
            return [to_attempt(row) for row in session.scalars(query)]

    def margins(self, key: str) -> bytes | None:
        """Return a run's final margins as little-endian float32, or None."""
        with self._session() as session:
            return session.scalar(select(MarginRow.values).where(MarginRow.key == key))

    def keys_with_margins(self, keys: Iterable[str]) -> set[str]:
        """Return those of the runs that have margins, without reading these."""
        query = select(MarginRow.key)
        with self._session() as session:
            return {
                key
                for chunk in chunks(keys)
                for key in session.scalars(query.where(MarginRow.key.in_(chunk)))
            }

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return the columns and rows of one SQL statement, which may only read.

        Raises: QueryError if the database rejects it, StoreError.
        """
        with translate_errors(self.url):
            return run_query(self.engine, sql)

    def frame(self, profile: str | None = None) -> "pd.DataFrame":
        """Return every metric of all runs, or of one profile, as a tidy frame.

        There is one row per run, epoch and metric. The columns are key, run_id, name, profile,
        seed, digest, status, epoch, metric, value.
        """
        import pandas as pd

        run = [RunRow.key, RunRow.run_id, RunRow.name, RunRow.profile, RunRow.seed]
        query = (
            select(*run, RunRow.digest, RunRow.status, MetricRow.epoch)
            .add_columns(MetricRow.name.label("metric"), MetricRow.value)
            .join(MetricRow, MetricRow.key == RunRow.key)
            .order_by(RunRow.run_id, RunRow.seed, RunRow.key, MetricRow.epoch, MetricRow.name)
        )
        if profile is not None:
            query = query.where(RunRow.profile == profile)
        with self._session() as session:
            return pd.read_sql(query, session.connection())


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    """Yield the distinct values in lists that fit into one statement of every database."""
    rest = iter(dict.fromkeys(values))
    while chunk := list(islice(rest, VALUES_PER_QUERY)):
        yield chunk


def _join_ranges(parts: Sequence[tuple[int, float, float, float]]) -> MetricRange:
    """Return the range of all values from counts, sums, minima and maxima of some of them each."""
    counts, sums, lows, highs = zip(*parts, strict=True)
    return MetricRange(sum(sums) / sum(counts), min(lows), max(highs))
