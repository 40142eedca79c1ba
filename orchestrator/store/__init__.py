"""The result store: a database that is the truth about every run. Only the driver writes.

SQLite in WAL mode by default, any other SQLAlchemy URL on request. This package alone imports
SQLAlchemy.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, distinct, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from orchestrator.provenance import Provenance
from orchestrator.spec import RunSpec
from orchestrator.store.database import StoreError, migrate, open_engine, store_url, unusable
from orchestrator.store.schema import (
    AttemptRow,
    Checkpoint,
    MarginRow,
    MetricRow,
    RunRow,
    Status,
    StoredRun,
    stored,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CHECKPOINTS_KEPT", "Checkpoint", "Status", "Store", "StoreError", "StoredRun"]

CHECKPOINTS_KEPT = 2


class Store:
    """The result store at a URL or path. Pickles as its URL; repeating a write is harmless."""

    def __init__(self, location: str | Path) -> None:
        """Open the database, creating or upgrading it. Raises: StoreError."""
        self.url = store_url(location)
        self.engine = open_engine(self.url)
        try:
            migrate(self.engine)
        except (DatabaseError, OSError) as error:
            raise StoreError(unusable(self.url, error)) from error

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.url,)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self.engine) as session, session.begin():
            yield session

    # What is written, in the order of a run's life

    def queue(self, runs: Iterable[RunSpec]) -> None:
        """Note runs as pending; what is known of them stays."""
        with self._session() as session:
            for run in runs:
                row = session.get(RunRow, run.key)
                if row is None:
                    session.add(_new_row(run))
                elif row.status != Status.DONE:
                    row.status, row.profile, row.name = Status.PENDING, run.profile, run.name

    def start(self, run: RunSpec, provenance: Provenance) -> None:
        """Open an attempt that continues the run's last recorded state."""
        with self._session() as session:
            row = session.get_one(RunRow, run.key)
            row.status, row.error, row.finished_at = Status.RUNNING, None, None
            row.started_at = row.started_at or _now()
            row.git_commit = provenance.git_commit
            row.packages = dict(provenance.packages)
            row.data_fingerprint = provenance.data_fingerprint
            _close_attempts(session, run.key, Status.INTERRUPTED)
            session.add(
                AttemptRow(
                    key=run.key,
                    from_epoch=row.checkpoints[0]["epoch"] if row.checkpoints else 0,
                    driver=_driver(),
                    started_at=_now(),
                    heartbeat_at=_now(),
                )
            )

    def place(self, key: str, host: str, device: str) -> None:
        """Note where a run trains."""
        with self._session() as session:
            session.execute(
                update(RunRow).where(RunRow.key == key).values(host=host, device=device)
            )

    def record(self, key: str, epoch: int, values: Mapping[str, float]) -> None:
        """Write one epoch. Repeating an epoch, as a resumed run does, overwrites it."""
        rows = [
            {"key": key, "epoch": epoch, "name": name, "value": value}
            for name, value in values.items()
        ]
        insert = {"sqlite": sqlite, "postgresql": postgresql}[self.engine.dialect.name].insert
        statement = insert(MetricRow)
        statement = statement.on_conflict_do_update(
            index_elements=["key", "epoch", "name"], set_={"value": statement.excluded.value}
        )
        with self._session() as session:
            session.execute(statement, rows)
            _beat(session, [key])

    def saved(self, key: str, checkpoint: Checkpoint) -> list[Checkpoint]:
        """Note a run's new checkpoint; returns those that it makes superfluous."""
        with self._session() as session:
            row = session.get_one(RunRow, key)
            others = [item for item in row.checkpoints if item["path"] != checkpoint.path]
            row.checkpoints = [asdict(checkpoint), *others]
        return self.keep_checkpoints(key, CHECKPOINTS_KEPT)

    def keep_checkpoints(self, key: str, count: int) -> list[Checkpoint]:
        """Keep note of a run's newest checkpoints only; returns the others."""
        with self._session() as session:
            row = session.get_one(RunRow, key)
            dropped = [Checkpoint(**item) for item in row.checkpoints[count:]]
            row.checkpoints = row.checkpoints[:count]
            return dropped

    def finish(
        self,
        key: str,
        status: Status,
        *,
        error: str | None = None,
        margins: bytes | None = None,
        certificate: Mapping[str, Any] | None = None,
    ) -> None:
        """Close a run and its attempt, also one that never started."""
        with self._session() as session:
            row = session.get_one(RunRow, key)
            row.status, row.error = status, error
            row.finished_at = _now() if status is not Status.PENDING else None
            if certificate is not None:
                row.certificate = dict(certificate)
            if margins is not None:
                session.merge(MarginRow(key=key, count=len(margins) // 4, values=margins))
            _close_attempts(session, key, status)

    def beat(self, keys: Iterable[str]) -> None:
        """Say that this driver is alive and still trains these runs."""
        with self._session() as session:
            _beat(session, keys)

    def recover(self) -> list[str]:
        """Mark runs whose driver is gone as interrupted; returns their keys."""
        gone = [
            run
            for run in self.runs()
            if run.status in (Status.RUNNING, Status.PENDING) and not run.alive
        ]
        for run in gone:
            self.finish(run.key, Status.INTERRUPTED, error=run.error)
        return [run.key for run in gone]

    def forget(self, key: str) -> None:
        """Delete all that is known of a run."""
        with self._session() as session:
            for table in (MetricRow, MarginRow, AttemptRow, RunRow):
                session.execute(delete(table).where(table.key == key))

    def link(self, key: str, mlflow_run_id: str) -> None:
        """Note which MLflow run shows this run."""
        with self._session() as session:
            session.execute(
                update(RunRow).where(RunRow.key == key).values(mlflow_run_id=mlflow_run_id)
            )

    # What is read

    def runs(self, keys: Iterable[str] | None = None) -> list[StoredRun]:
        """All runs, or those of these keys, by run ID and seed."""
        last_epoch = (
            select(
                MetricRow.key,
                func.max(MetricRow.epoch).label("epoch"),
                func.count(distinct(MetricRow.epoch)).label("recorded"),
            )
            .group_by(MetricRow.key)
            .subquery()
        )
        newest = select(func.max(AttemptRow.id)).group_by(AttemptRow.key)
        attempt = select(AttemptRow).where(AttemptRow.id.in_(newest)).subquery()
        query = (
            select(RunRow, last_epoch.c.epoch, last_epoch.c.recorded)
            .add_columns(attempt.c.heartbeat_at, attempt.c.driver)
            .outerjoin(last_epoch, last_epoch.c.key == RunRow.key)
            .outerjoin(attempt, attempt.c.key == RunRow.key)
            .order_by(RunRow.run_id, RunRow.seed, RunRow.created_at)
        )
        if keys is not None:
            query = query.where(RunRow.key.in_(list(keys)))
        with self._session() as session:
            return [stored(*row) for row in session.execute(query)]

    def metrics(self, key: str, after: int = 0) -> dict[int, dict[str, float]]:
        """A run's metrics by epoch, from the epoch after `after` on."""
        query = (
            select(MetricRow.epoch, MetricRow.name, MetricRow.value)
            .where(MetricRow.key == key, MetricRow.epoch > after)
            .order_by(MetricRow.epoch, MetricRow.name)
        )
        epochs: dict[int, dict[str, float]] = {}
        with self._session() as session:
            for epoch, name, value in session.execute(query):
                epochs.setdefault(epoch, {})[name] = value
        return epochs

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

    def margins(self, key: str) -> bytes | None:
        """A run's final margins as little-endian float32, or None."""
        with self._session() as session:
            row = session.get(MarginRow, key)
            return row.values if row else None

    def frame(self) -> "pd.DataFrame":
        """Every metric of every run as a tidy frame, one row per run, epoch and metric.

        Columns: key, run_id, name, profile, seed, digest, status, epoch, metric, value.
        """
        import pandas as pd

        run = [RunRow.key, RunRow.run_id, RunRow.name, RunRow.profile, RunRow.seed]
        query = (
            select(*run, RunRow.digest, RunRow.status, MetricRow.epoch)
            .add_columns(MetricRow.name.label("metric"), MetricRow.value)
            .join(MetricRow, MetricRow.key == RunRow.key)
            .order_by(RunRow.run_id, RunRow.seed, RunRow.key, MetricRow.epoch, MetricRow.name)
        )
        with self.engine.connect() as connection:
            return pd.read_sql(query, connection)


def _new_row(run: RunSpec) -> RunRow:
    return RunRow(
        key=run.key,
        run_id=run.id,
        name=run.name,
        profile=run.profile,
        seed=run.train.seed,
        digest=run.train.digest(),
        config=json.loads(json.dumps(asdict(run.train))),
        epochs=run.train.epochs,
        status=Status.PENDING,
        created_at=_now(),
        checkpoints=[],
    )


def _close_attempts(session: Session, key: str, outcome: Status) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.key == key, AttemptRow.finished_at.is_(None))
        .values(finished_at=_now(), outcome=outcome)
    )


def _beat(session: Session, keys: Iterable[str]) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.key.in_(list(keys)), AttemptRow.finished_at.is_(None))
        .values(heartbeat_at=_now())
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _driver() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
