"""What is read from the result store."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import case, func, select
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from orchestrator.store.engine import (
    migrate,
    open_engine,
    outdated,
    require_writable,
    run_query,
    sole_writer,
    store_url,
    translate_errors,
)
from orchestrator.store.models import (
    RUN_COLUMNS,
    AttemptRow,
    EpochRow,
    MarginRow,
    MetricRow,
    RunRow,
    attempt,
    stored,
)
from orchestrator.store.records import OPEN, Attempt, Status, StoredRun

if TYPE_CHECKING:
    import pandas as pd

PORTION = 1000
LAST_SIGN = func.coalesce(RunRow.heartbeat_at, RunRow.created_at)
OF_THE_RUN = EpochRow.key == RunRow.key
LAST = select(func.max(EpochRow.epoch)).where(OF_THE_RUN).correlate(RunRow).scalar_subquery()
RECORDED = select(func.count()).where(OF_THE_RUN).correlate(RunRow).scalar_subquery()


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
        with translate_errors(self.url), ExitStack() as held:
            old = outdated(self.engine)
            if old:
                require_writable(self.url, " with an older schema")
            if exclusive or old:
                held.enter_context(sole_writer(self.engine, self.url))
            if old:
                migrate(self.engine)
            self._held = held.pop_all() if exclusive else ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let other drivers in, and the database go."""
        self._held.close()
        self.engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with translate_errors(self.url), Session(self.engine) as session, session.begin():
            yield session

    def runs(
        self,
        keys: Iterable[str] | None = None,
        *,
        ids: Iterable[int] | None = None,
        digests: Iterable[str] | None = None,
        profiles: Iterable[str] | None = None,
        statuses: Iterable[Status] | None = None,
    ) -> list[StoredRun]:
        """All runs, or those that are among what is given, by run ID and seed."""
        among = (
            (RunRow.key, keys),
            (RunRow.run_id, ids),
            (RunRow.digest, digests),
            (RunRow.profile, profiles),
            (RunRow.status, statuses),
        )
        query = (
            select(*RUN_COLUMNS, LAST.label("epoch"), RECORDED.label("recorded"))
            .where(*(column.in_(list(wanted)) for column, wanted in among if wanted is not None))
            .order_by(RunRow.run_id, RunRow.seed, RunRow.created_at)
        )
        with self._session() as session:
            return [stored(row) for row in session.execute(query)]

    def foremost(self, count: int, profile: str | None = None) -> list[str]:
        """The keys of so many runs: waiting or in training, then broken off, then the newest."""
        rank = case(
            (RunRow.status.in_(OPEN), 0),
            (RunRow.status == Status.DONE, 2),
            else_=1,
        )
        query = select(RunRow.key).order_by(rank, LAST_SIGN.desc(), RunRow.key).limit(count)
        if profile is not None:
            query = query.where(RunRow.profile == profile)
        with self._session() as session:
            return list(session.scalars(query))

    def counts(self, profile: str | None = None) -> dict[Status, int]:
        """How many runs there are by their status, of all or of one profile."""
        query = select(RunRow.status, func.count()).group_by(RunRow.status)
        if profile is not None:
            query = query.where(RunRow.profile == profile)
        with self._session() as session:
            return {Status(status): count for status, count in session.execute(query)}

    def profiles(self) -> list[str]:
        """The profiles that there are runs of."""
        with self._session() as session:
            return sorted(session.scalars(select(RunRow.profile).distinct()))

    def newest_profile(self, among: Iterable[str] | None = None) -> str | None:
        """The profile that was trained last, of all or of these; None if none was."""
        query = select(RunRow.profile).order_by(LAST_SIGN.desc(), RunRow.run_id, RunRow.seed)
        if among is not None:
            query = query.where(RunRow.profile.in_(list(among)))
        with self._session() as session:
            return session.scalar(query.limit(1))

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

    def latest(
        self, keys: Iterable[str], *, epochs: int = 1, names: Iterable[str] | None = None
    ) -> dict[str, dict[int, dict[str, float]]]:
        """The metrics of each run's last epochs, all or those of these names, by key and epoch."""
        query = (
            select(MetricRow.key, MetricRow.epoch, MetricRow.name, MetricRow.value)
            .join(RunRow, RunRow.key == MetricRow.key)
            .where(MetricRow.epoch > LAST - epochs)
        )
        if names is not None:
            query = query.where(MetricRow.name.in_(list(names)))
        found: dict[str, dict[int, dict[str, float]]] = {}
        with self._session() as session:
            for some in _portions(keys):
                for key, epoch, name, value in session.execute(query.where(RunRow.key.in_(some))):
                    found.setdefault(key, {}).setdefault(epoch, {})[name] = value
        return found

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
            return session.scalar(select(MarginRow.values).where(MarginRow.key == key))

    def query(self, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
        """The columns and rows of somebody's SQL, which may read only.

        Raises: QueryError for what the database says against it, StoreError.
        """
        with translate_errors(self.url):
            return run_query(self.engine, sql)

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


def _portions(keys: Iterable[str]) -> Iterator[list[str]]:
    """The keys in lists that fit into one statement of every database."""
    rest = iter(keys)
    while some := list(islice(rest, PORTION)):
        yield some
