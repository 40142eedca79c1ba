"""What is written into the result store, in the order of a run's life."""

import json
import math
import os
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, update
from sqlalchemy.engine import URL
from sqlalchemy.orm import Session

from orchestrator.provenance import Provenance
from orchestrator.spec.experiment import RunSpec
from orchestrator.store.models import (
    AttemptRow,
    CellRow,
    EpochRow,
    MarginRow,
    MetricRow,
    RunRow,
    tables_of_runs,
)
from orchestrator.store.reader import StoreReader
from orchestrator.store.records import OPEN, Checkpoint, Epoch, Status

CHECKPOINTS_KEPT = 2


class Store(StoreReader):
    """The result store at a URL or path; repeating a write is harmless."""

    def __init__(self, location: str | Path | URL, *, exclusive: bool = False) -> None:
        super().__init__(location, exclusive=exclusive)
        self._open = threading.local()  # the session of each thread that is in `at_once`

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """One transaction of all that this thread does inside: all of it is kept, or nothing."""
        with super()._session() as session:
            self._open.session = session
            try:
                yield
            finally:
                del self._open.session

    @contextmanager
    def _session(self) -> Iterator[Session]:
        if session := getattr(self._open, "session", None):
            yield session
            return
        with super()._session() as session:
            yield session

    def queue(self, runs: Iterable[RunSpec]) -> None:
        """Note runs as pending with this driver; what is known of them stays."""
        with self._session() as session:
            for run in runs:
                row = session.get(RunRow, run.key) or _new_row(run)
                session.add(row)
                if row.status != Status.DONE:
                    row.status, row.profile, row.name = Status.PENDING, run.profile, run.name
                    row.driver, row.heartbeat_at = _driver(), _now()

    def start(self, run: RunSpec, provenance: Provenance, *, at: str | None = None) -> None:
        """Open an attempt that continues the run's last recorded state; `at` if not now."""
        with self._session() as session:
            row = session.get_one(RunRow, run.key)
            row.status, row.error, row.finished_at = Status.RUNNING, None, None
            row.driver, row.heartbeat_at = _driver(), _now()
            row.started_at = row.started_at or at or _now()
            row.git_commit = provenance.git_commit
            row.git_diff = provenance.git_diff
            row.packages = dict(provenance.packages)
            row.data_fingerprint = provenance.data_fingerprint
            _close_attempts(session, run.key, Status.INTERRUPTED, at)
            session.add(
                AttemptRow(
                    key=run.key,
                    from_epoch=row.checkpoints[0]["epoch"] if row.checkpoints else 0,
                    driver=_driver(),
                    started_at=at or _now(),
                )
            )

    def place(self, key: str, host: str, device: str, epoch: int) -> None:
        """Note where a run trains, and after which epoch it really continues."""
        with self._session() as session:
            session.execute(
                update(RunRow).where(RunRow.key == key).values(host=host, device=device)
            )
            session.execute(
                update(AttemptRow)
                .where(AttemptRow.key == key, AttemptRow.finished_at.is_(None))
                .values(from_epoch=epoch)
            )

    def record(self, key: str, epoch: int, values: Mapping[str, float]) -> list[Checkpoint]:
        """Write one epoch in place of it and all later ones: a resumed run trains them again.

        Returns the checkpoints of those later ones, which are of no use any more.

        Raises: ValueError if a value is NaN, which databases store in different ways.
        """
        return self.record_all(key, [Epoch(epoch, values, _now())])

    def record_all(self, key: str, epochs: Sequence[Epoch]) -> list[Checkpoint]:
        """Write a run's epochs, which follow each other, as `record` would one by one."""
        if not epochs:
            return []
        for one in epochs:
            if unknown := sorted(name for name, value in one.values.items() if math.isnan(value)):
                raise ValueError(
                    f"epoch {one.epoch} of {key}: {', '.join(unknown)} is not a number"
                )
        first = epochs[0].epoch
        with self._session() as session:
            run = session.get_one(RunRow, key)
            run.heartbeat_at = _now()
            for table in (MetricRow, EpochRow):
                session.execute(delete(table).where(table.key == key, table.epoch >= first))
            stamps = [{"key": key, "epoch": one.epoch, "recorded_at": one.at} for one in epochs]
            connection = session.connection()  # a session would take its time with each row
            connection.execute(insert(MetricRow), list(_metric_rows(key, epochs)))
            connection.execute(insert(EpochRow), stamps)
            return _keep(run, [item for item in run.checkpoints if item["epoch"] <= first])

    def saved(self, key: str, checkpoint: Checkpoint) -> list[Checkpoint]:
        """Note a run's new checkpoint; returns those that it makes superfluous."""
        with self._session() as session:
            row = session.get_one(RunRow, key)
            others = [item for item in row.checkpoints if item["path"] != checkpoint.path]
            row.checkpoints = [asdict(checkpoint), *others]
            return _keep(row, row.checkpoints[:CHECKPOINTS_KEPT])

    def keep_checkpoints(self, key: str, count: int) -> list[Checkpoint]:
        """Keep note of a run's newest checkpoints only; returns the others."""
        with self._session() as session:
            row = session.get_one(RunRow, key)
            return _keep(row, row.checkpoints[:count])

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
        """Close a run and its attempt, also one that never started; `at` if not now."""
        with self._session() as session:
            row = session.get_one(RunRow, key)
            row.status, row.error = status, error
            row.finished_at = (at or _now()) if status is not Status.PENDING else None
            if certificate is not None:
                row.certificate = dict(certificate)
            if margins is not None:
                session.merge(MarginRow(key=key, count=len(margins) // 4, values=margins))
            _close_attempts(session, key, status, at)

    def beat(self) -> None:
        """Say that this driver is alive, for the runs that it trains or still will."""
        mine = RunRow.driver == _driver()
        open_ = RunRow.status.in_(OPEN)
        with self._session() as session:
            session.execute(update(RunRow).where(mine, open_).values(heartbeat_at=_now()))

    def recover(self) -> None:
        """Mark runs whose driver is gone as interrupted.

        In an exclusive store these are all: its lock says more than a heartbeat or the number of
        a process, which a restarted container gives to the next driver.
        """
        for run in self.runs(statuses=OPEN):
            if self.exclusive or not run.alive:
                self.finish(run.key, Status.INTERRUPTED, error=run.error)

    def forget(self, key: str) -> None:
        """Delete all that is known of a run."""
        with self._session() as session:
            for table in reversed(tables_of_runs()):
                session.execute(delete(table).where(table.c.key == key))

    def note_cells(self, profile: str, cells: Iterable[Mapping[str, object]]) -> None:
        """Put the published cells of a profile, in reading order, in place of those noted before.

        Each has the columns of `CellRow` but for `profile` and `place`.
        """
        rows = [{"profile": profile, "place": place, **cell} for place, cell in enumerate(cells)]
        with self._session() as session:
            session.execute(delete(CellRow).where(CellRow.profile == profile))
            if rows:
                session.execute(insert(CellRow), rows)

    def link(self, key: str, mlflow_run_id: str | None) -> None:
        """Note which MLflow run shows this run, before anything is sent to it."""
        self._update(key, mlflow_run_id=mlflow_run_id, mlflow_status=None)

    def shown(self, key: str, status: Status) -> None:
        """Note that MLflow has all of the run up to this status."""
        self._update(key, mlflow_status=status)

    def _update(self, key: str, **values: str | None) -> None:
        with self._session() as session:
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


def _metric_rows(key: str, epochs: Iterable[Epoch]) -> Iterator[dict[str, object]]:
    for one in epochs:
        for name, value in one.values.items():
            yield {"key": key, "epoch": one.epoch, "name": name, "value": value}


def _keep(row: RunRow, kept: list[dict[str, object]]) -> list[Checkpoint]:
    """Note only these of a run's checkpoints; returns the others."""
    dropped = [Checkpoint(**item) for item in row.checkpoints if item not in kept]
    if dropped:
        row.checkpoints = kept
    return dropped


def _close_attempts(session: Session, key: str, outcome: Status, at: str | None) -> None:
    session.execute(
        update(AttemptRow)
        .where(AttemptRow.key == key, AttemptRow.finished_at.is_(None))
        .values(finished_at=at or _now(), outcome=outcome)
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _driver() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
