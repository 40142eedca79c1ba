"""Writing to the result store, in the order of a run's life."""

import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import URL, Connection
from sqlalchemy.orm import Session

from orchestrator.errors import StoreError
from orchestrator.provenance import Provenance
from orchestrator.spec.experiment import RunSpec
from orchestrator.store.drivers import (
    DriverWatch,
    add_driver,
    end_drivers,
    renew_heartbeat,
)
from orchestrator.store.engine import translate_errors
from orchestrator.store.lock import in_use, lost
from orchestrator.store.models import (
    AttemptRow,
    CellRow,
    EpochRow,
    MarginRow,
    MetricRow,
    RunRow,
    run_tables,
)
from orchestrator.store.reader import StoreReader, chunks
from orchestrator.store.records import OPEN, Checkpoint, Epoch, Status

CHECKPOINTS_KEPT = 2


class Store(StoreReader):
    """The result store at a path or URL. Every write is idempotent."""

    def __init__(
        self, location: str | Path | URL, *, exclusive: bool = False, seconds: float = math.inf
    ) -> None:
        """Open the store as `StoreReader` does; an exclusive one is taken over from dead drivers.

        Raises: StoreError, also if another driver uses the store.
        """
        super().__init__(location, exclusive=exclusive, seconds=seconds)
        self._local = threading.local()  # has the session of this thread's `transaction`
        if exclusive:
            try:
                self._take_over()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End this driver, release the lock and close the connections."""
        if self._driver:
            with suppress(StoreError), super()._session() as session:  # else its process is gone
                end_drivers(session.connection(), self._driver)
            self._driver = None
        super().close()

    def _take_over(self) -> None:
        """End all earlier drivers.

        The lock alone does not show that they are dead, because a server that restarts loses it.

        Raises: StoreError if one is alive.
        """
        others = DriverWatch(
            lambda: [one for one in self._other_drivers() if not one.here], trust_clock=False
        )
        if others.alive():
            raise in_use(self.url)
        with self._session() as session:
            end_drivers(session.connection())
            self._driver = add_driver(session.connection())

    def _become_driver(self) -> None:
        if not self._driver:
            with self._session() as session:
                self._driver = add_driver(session.connection())

    def renew(self, connection: Connection) -> None:
        """Renew this driver's heartbeat at the start of a transaction that writes.

        Raises: StoreLostError if another driver took over.
        """
        if self._driver and not renew_heartbeat(connection, self._driver):
            raise lost(self.url)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes of this thread inside the block together, or none of them."""
        self._become_driver()
        with super()._session() as session:
            self.renew(session.connection())
            self._local.session = session
            try:
                yield
            finally:
                del self._local.session

    @contextmanager
    def _session(self) -> Iterator[Session]:
        if session := getattr(self._local, "session", None):
            yield session
            return
        with super()._session() as session:
            yield session

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        """Open a session that writes, or use that of this thread's `transaction`."""
        with self._session() as session:
            if not hasattr(self._local, "session"):
                self.renew(session.connection())
            yield session

    def queue(self, runs: Iterable[RunSpec]) -> None:
        """Add runs as pending; runs that are stored already keep their results."""
        by_key = {run.key: run for run in runs}
        self._become_driver()
        with self._writing() as session:
            for keys in chunks(by_key):
                known = session.scalars(select(RunRow).where(RunRow.key.in_(keys)))
                rows = {row.key: row for row in known}
                for key in keys:
                    run, row = by_key[key], rows.get(key) or _new_row(by_key[key])
                    session.add(row)
                    if row.status != Status.DONE:
                        row.status, row.profile, row.name = Status.PENDING, run.profile, run.name
                        row.driver = self._driver

    def start(self, run: RunSpec, provenance: Provenance, *, at: str | None = None) -> None:
        """Begin an attempt from the newest checkpoint, now or at the time `at`."""
        self._become_driver()
        with self._writing() as session:
            row = session.get_one(RunRow, run.key)
            row.status, row.error, row.finished_at = Status.RUNNING, None, None
            row.driver = self._driver
            row.started_at = row.started_at or at or _now()
            _close_attempts(session, [run.key], Status.INTERRUPTED, at)
            attempt = AttemptRow(
                key=run.key,
                from_epoch=row.checkpoints[0]["epoch"] if row.checkpoints else 0,
                driver=self._driver,
                started_at=at or _now(),
            )
            session.add(attempt)
            _set_origin(row, attempt, provenance)

    def set_placement(
        self, key: str, host: str, device: str, epoch: int, provenance: Provenance | None = None
    ) -> None:
        """Set where a run's last attempt trains and the epoch after which it started.

        `provenance` is that of the worker, which may differ from the driver's.
        """
        attempts = select(AttemptRow).where(AttemptRow.key == key).order_by(AttemptRow.id.desc())
        with self._writing() as session:
            row = session.get_one(RunRow, key)
            row.host, row.device = host, device
            if attempt := session.scalars(attempts.limit(1)).first():
                attempt.host, attempt.device, attempt.from_epoch = host, device, epoch
                if provenance:
                    _set_origin(row, attempt, provenance)

    def record(self, key: str, epoch: int, values: Mapping[str, float]) -> list[Checkpoint]:
        """Write one epoch and delete all later ones, which a resumed run trains again.

        Returns the checkpoints of the deleted epochs.

        Raises: ValueError if a value is NaN, which databases store in different ways.
        """
        return self.record_epochs(key, [Epoch(epoch, values, _now())])

    def record_epochs(self, key: str, epochs: Sequence[Epoch]) -> list[Checkpoint]:
        """Write consecutive epochs with the same result as `record` for each of them."""
        if not epochs:
            return []
        for one in epochs:
            if nan := sorted(name for name, value in one.values.items() if math.isnan(value)):
                raise ValueError(f"epoch {one.epoch} of {key}: {', '.join(nan)} is not a number")
        first = epochs[0].epoch
        with self._writing() as session:
            run = session.get_one(RunRow, key)
            for table in (MetricRow, EpochRow):
                session.execute(delete(table).where(table.key == key, table.epoch >= first))
            stamps = [{"key": key, "epoch": one.epoch, "recorded_at": one.at} for one in epochs]
            connection = session.connection()  # much faster than a session for many rows
            connection.execute(insert(MetricRow), list(_metric_rows(key, epochs)))
            connection.execute(insert(EpochRow), stamps)
            return _keep_only(run, [item for item in run.checkpoints if item["epoch"] <= first])

    def add_checkpoint(self, key: str, checkpoint: Checkpoint) -> list[Checkpoint]:
        """Add a run's newest checkpoint and return those that are no longer kept."""
        with self._writing() as session:
            row = session.get_one(RunRow, key)
            others = [item for item in row.checkpoints if item["path"] != checkpoint.path]
            row.checkpoints = [asdict(checkpoint), *others]
            return _keep_only(row, row.checkpoints[:CHECKPOINTS_KEPT])

    def keep_checkpoints(self, key: str, count: int) -> list[Checkpoint]:
        """Keep only a run's newest checkpoints and return the others."""
        with self._writing() as session:
            row = session.get_one(RunRow, key)
            return _keep_only(row, row.checkpoints[:count])

    def finish(
        self,
        key: str,
        status: Status,
        *,
        error: str | None = None,
        margins: bytes | None = None,
        certificate: Mapping[str, Any] | None = None,
        at: str | None = None,
    ) -> None:
        """End a run and its attempt, now or at the time `at`; the run need not have started."""
        with self._writing() as session:
            row = session.get_one(RunRow, key)
            row.status, row.error = status, error
            row.finished_at = (at or _now()) if status is not Status.PENDING else None
            if certificate is not None:
                row.certificate = dict(certificate)
            if margins is not None:
                session.merge(MarginRow(key=key, count=len(margins) // 4, values=margins))
            _close_attempts(session, [key], status, at)

    def heartbeat(self) -> None:
        """Renew this driver's heartbeat, and its lock if that was lost."""
        if self.exclusive:
            with translate_errors(self.url):
                self._lock.renew()
        with self._writing():
            pass

    def recover(self) -> None:
        """Mark open runs as interrupted if their driver is dead.

        In an exclusive store no other driver is alive.
        """
        lost = [run.key for run in self.runs(statuses=OPEN) if self.exclusive or not run.alive]
        with self._writing() as session:
            for keys in chunks(lost):
                session.execute(
                    update(RunRow)
                    .where(RunRow.key.in_(keys))
                    .values(status=Status.INTERRUPTED, finished_at=_now())
                )
                _close_attempts(session, keys, Status.INTERRUPTED, None)

    def delete_run(self, key: str) -> None:
        """Delete a run with all its records."""
        with self._writing() as session:
            for table in reversed(run_tables()):
                session.execute(delete(table).where(table.c.key == key))

    def replace_cells(self, profile: str, cells: Iterable[Mapping[str, object] | None]) -> None:
        """Replace the published cells of a profile by these, in the order of the tables.

        Each cell has the columns of `CellRow` except `profile` and `place`. None keeps the stored
        cell at its place.
        """
        placed = list(enumerate(cells))
        rows = [{"profile": profile, "place": place, **cell} for place, cell in placed if cell]
        of_profile = delete(CellRow).where(CellRow.profile == profile)
        with self._writing() as session:
            session.execute(of_profile.where(CellRow.place >= len(placed)))
            for places in chunks(row["place"] for row in rows):
                session.execute(of_profile.where(CellRow.place.in_(places)))
            if rows:
                session.execute(insert(CellRow), rows)

    def set_mlflow_run(self, key: str, mlflow_run_id: str | None) -> None:
        """Set the MLflow run of this run, before anything is sent to it."""
        self._update(key, mlflow_run_id=mlflow_run_id, mlflow_status=None)

    def set_mlflow_status(self, key: str, status: Status) -> None:
        """Set the status up to which MLflow has received the run."""
        self._update(key, mlflow_status=status)

    def _update(self, key: str, **values: str | None) -> None:
        with self._writing() as session:
            session.execute(update(RunRow).where(RunRow.key == key).values(**values))


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


def _set_origin(run: RunRow, attempt: AttemptRow, provenance: Provenance) -> None:
    """Set the origin of an attempt; a run has that of its last one."""
    run.data_fingerprint = provenance.data_fingerprint
    attempt.gpu_driver, attempt.git_diff = provenance.gpu_driver, provenance.git_diff
    for row in (run, attempt):
        row.git_commit = provenance.git_commit
        row.packages = dict(provenance.packages)


def _metric_rows(key: str, epochs: Iterable[Epoch]) -> Iterator[dict[str, object]]:
    for one in epochs:
        for name, value in one.values.items():
            yield {"key": key, "epoch": one.epoch, "name": name, "value": value}


def _keep_only(row: RunRow, kept: list[dict[str, object]]) -> list[Checkpoint]:
    """Drop a run's other checkpoints and return them."""
    dropped = [Checkpoint(**item) for item in row.checkpoints if item not in kept]
    if dropped:
        row.checkpoints = kept
    return dropped


def _close_attempts(session: Session, keys: Sequence[str], outcome: Status, at: str | None) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.key.in_(keys), AttemptRow.finished_at.is_(None))
        .values(finished_at=at or _now(), outcome=outcome)
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
