"""What is read from the result store."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, func, select, true
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute, Session

from orchestrator.store.database import (
    QueryError,
    migrate,
    open_engine,
    outdated,
    require_writable,
    store_url,
    told,
)
from orchestrator.store.lock import sole_writer
from orchestrator.store.schema import (
    Attempt,
    AttemptRow,
    EpochRow,
    MarginRow,
    MetricRow,
    RunRow,
    Status,
    StoredRun,
    attempt,
    stored,
)

if TYPE_CHECKING:
    import pandas as pd


class StoreReader:
    """The result store at a URL or path, opened; every method may raise StoreError."""

    def __init__(self, location: str | Path | URL, *, exclusive: bool = False) -> None:
        """Open the database, creating or upgrading it where needed.

        `exclusive` keeps other drivers away until `close`.

        Raises: StoreError, also if another driver is there.
        """
        self.url, self.exclusive = store_url(location), exclusive
        if exclusive:
            require_writable(self.url)
        self.engine = open_engine(self.url)
        with told(self.url), ExitStack() as held:
            old = outdated(self.engine)
            if old:
                require_writable(self.url, " with an older schema")
            if exclusive or old:
                held.enter_context(sole_writer(self.engine, self.url))
            if old:
                migrate(self.engine)
            self._held = held.pop_all() if exclusive else ExitStack()

    def close(self) -> None:
        """Let other drivers in, and the database go."""
        self._held.close()
        self.engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with told(self.url), Session(self.engine) as session, session.begin():
            yield session

    def runs(self, keys: Iterable[str] | None = None) -> list[StoredRun]:
        """All runs, or those of these keys, by run ID and seed."""
        wanted = None if keys is None else list(keys)
        epochs = (
            select(
                EpochRow.key,
                func.max(EpochRow.epoch).label("last"),
                func.count().label("recorded"),
            )
            .where(_among(EpochRow.key, wanted))  # else it counts those of all runs
            .group_by(EpochRow.key)
            .subquery()
        )
        query = (
            select(RunRow, epochs.c.last, epochs.c.recorded)
            .outerjoin(epochs, epochs.c.key == RunRow.key)
            .where(_among(RunRow.key, wanted))
            .order_by(RunRow.run_id, RunRow.seed, RunRow.created_at)
        )
        with self._session() as session:
            return [stored(*row) for row in session.execute(query)]

    def metrics(
        self, key: str, *, after: int = 0, until: int | None = None
    ) -> dict[int, dict[str, float]]:
        """A run's metrics by epoch, of the epochs after `after` up to `until`."""
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

    def recorded_at(self, key: str, *, after: int = 0) -> dict[int, str]:
        """When each epoch of a run was recorded, of the epochs after `after`."""
        query = select(EpochRow.epoch, EpochRow.recorded_at).where(
            EpochRow.key == key, EpochRow.epoch > after
        )
        with self._session() as session:
            return {row.epoch: row.recorded_at for row in session.execute(query)}

    def final(self, keys: Iterable[str]) -> dict[str, dict[str, float]]:
        """The last epoch's metrics of each finished run among `keys`."""
        query = (
            select(MetricRow.key, MetricRow.name, MetricRow.value)
            .join(RunRow, RunRow.key == MetricRow.key)
            .where(
                RunRow.key.in_(list(keys)),
                RunRow.status == Status.DONE,
                MetricRow.epoch == RunRow.epochs,
            )
        )
        found: dict[str, dict[str, float]] = {}
        with self._session() as session:
            for key, name, value in session.execute(query):
                found.setdefault(key, {})[name] = value
        return found

    def attempts(self, key: str) -> list[Attempt]:
        """Every try of a run, first to last."""
        query = select(AttemptRow).where(AttemptRow.key == key).order_by(AttemptRow.id)
        with self._session() as session:
            return [attempt(row) for row in session.scalars(query)]

    def diff(self, key: str) -> str | None:
        """What the source of a run had changed beside its commit, as a patch; None if nothing."""
        with self._session() as session:
            return session.scalar(select(RunRow.git_diff).where(RunRow.key == key))

    def margins(self, key: str) -> bytes | None:
        """A run's final margins as little-endian float32, or None."""
        with self._session() as session:
            row = session.get(MarginRow, key)
            return row.values if row else None

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The columns and rows of somebody's SQL, which may read only.

        Raises: QueryError for what the database says against it, StoreError.
        """
        read_only = {"sqlite": "PRAGMA query_only = ON", "postgresql": "SET TRANSACTION READ ONLY"}
        with told(self.url), self.engine.connect() as connection:
            connection.exec_driver_sql(read_only[self.engine.dialect.name])
            try:
                found = connection.exec_driver_sql(sql)
                if not found.returns_rows:
                    raise QueryError("the query returns no rows; only reading is allowed")
                return list(found.keys()), [tuple(row) for row in found]
            except DBAPIError as error:
                raise QueryError(" ".join(str(error.orig).split())) from error
            finally:
                connection.invalidate()  # nobody else gets one that only reads

    def frame(self, profile: str | None = None) -> "pd.DataFrame":
        """Every metric of every run, or of one profile's, as a tidy frame.

        A row per run, epoch and metric; columns: key, run_id, name, profile, seed, digest,
        status, epoch, metric, value.
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


def _among(column: InstrumentedAttribute[str], keys: list[str] | None) -> ColumnElement[bool]:
    return true() if keys is None else column.in_(keys)
