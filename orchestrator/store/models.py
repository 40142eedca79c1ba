"""The tables of the result store, and their conversion to plain values.

Times are ISO 8601 in UTC.
"""

from collections.abc import Container
from dataclasses import fields
from typing import Any, ClassVar

from sqlalchemy import ForeignKey, Row, Table, case, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from aol.text import printable, printable_lines
from orchestrator.store.columns import (
    Bytes,
    DamagedValueError,
    IsoTime,
    Json,
    JsonList,
    LongWhole,
    Real,
    Text,
    Time,
    Whole,
)
from orchestrator.store.records import OPEN, Attempt, Checkpoint, Status, StoredRun


class Base(DeclarativeBase):
    """The schema; every change needs a migration in `migrations/versions`."""

    type_annotation_map: ClassVar = {
        str: Text,
        int: Whole,
        float: Real,
        bytes: Bytes,
        Time: IsoTime,
    }


class DriverRow(Base):
    """One driver; `ended_at` is set when it ends, or when another one takes over the store."""

    __tablename__ = "drivers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    process: Mapped[int]
    started_at: Mapped[Time]
    heartbeat_at: Mapped[Time]
    beats: Mapped[int]  # heartbeats so far, which need no clock to be compared
    ended_at: Mapped[Time | None]


class RunRow(Base):
    """One run: its settings, its status and the origin of its results."""

    __tablename__ = "runs"

    key: Mapped[str] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(index=True)
    name: Mapped[str]
    profile: Mapped[str] = mapped_column(index=True)
    seed: Mapped[int] = mapped_column(LongWhole)
    digest: Mapped[str]
    config: Mapped[dict[str, Any]] = mapped_column(Json)
    epochs: Mapped[int]
    status: Mapped[str] = mapped_column(index=True)
    created_at: Mapped[Time]
    started_at: Mapped[Time | None]
    finished_at: Mapped[Time | None]
    driver: Mapped[str | None]  # the last one that queued or started it
    host: Mapped[str | None]
    device: Mapped[str | None]
    git_commit: Mapped[str | None]
    git_diff: Mapped[str | None] = mapped_column(deferred=True)  # of earlier versions; see attempts
    packages: Mapped[dict[str, Any] | None] = mapped_column(Json)
    data_fingerprint: Mapped[str | None]
    mlflow_run_id: Mapped[str | None]
    mlflow_status: Mapped[str | None]  # the status last sent to MLflow
    checkpoints: Mapped[list[Any]] = mapped_column(JsonList)  # epoch and path, newest first
    error: Mapped[str | None]
    certificate: Mapped[dict[str, Any] | None] = mapped_column(Json)


class AttemptRow(Base):
    """One attempt of a driver to train a run after `from_epoch` epochs, and its origin.

    The origin is the driver's until the worker has reported its own.
    """

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(ForeignKey(RunRow.key), index=True)
    from_epoch: Mapped[int]
    driver: Mapped[str]
    started_at: Mapped[Time]
    finished_at: Mapped[Time | None]
    outcome: Mapped[str | None]
    host: Mapped[str | None]
    device: Mapped[str | None]
    gpu_driver: Mapped[str | None]
    git_commit: Mapped[str | None]
    git_diff: Mapped[str | None]  # may be long
    packages: Mapped[dict[str, Any] | None] = mapped_column(Json)


class EpochRow(Base):
    """An epoch whose metrics are recorded, with the time."""

    __tablename__ = "epochs"

    key: Mapped[str] = mapped_column(ForeignKey(RunRow.key), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    recorded_at: Mapped[Time]


class MetricRow(Base):
    """Tidy metrics: a new metric needs rows, not a migration."""

    __tablename__ = "metrics"

    key: Mapped[str] = mapped_column(ForeignKey(RunRow.key), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]


class CellRow(Base):
    """A published number of one profile's tables, for the view `v_cells`."""

    __tablename__ = "cells"

    profile: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)  # in the order of the tables
    table_id: Mapped[str]
    row_label: Mapped[str]
    column_title: Mapped[str]
    run_id: Mapped[int]
    seed: Mapped[int] = mapped_column(LongWhole)  # of the experiment's file, without replicates
    digest: Mapped[str]
    metric: Mapped[str]
    published: Mapped[float]  # percent
    margin: Mapped[float]  # tolerance within which it counts as reproduced


class MarginRow(Base):
    """The final score margins of the test images, in order, as little-endian float32."""

    __tablename__ = "margins"

    key: Mapped[str] = mapped_column(ForeignKey(RunRow.key), primary_key=True)
    count: Mapped[int]
    values: Mapped[bytes]


RUN_COLUMNS = tuple(  # the columns that `to_stored_run` needs
    column for column in RunRow.__table__.columns if column.name in StoredRun.__annotations__
)


SHOWN = ("name", "host", "device", "git_commit", "data_fingerprint")  # perhaps written by others

# Of a run: its last epoch, and the last one before the first that is missing
_SAME_RUN = EpochRow.key == RunRow.key
LAST_EPOCH = select(func.max(EpochRow.epoch)).where(_SAME_RUN).correlate(RunRow).scalar_subquery()
_FIRST_EPOCH = select(func.min(EpochRow.epoch)).where(_SAME_RUN).correlate(RunRow).scalar_subquery()
_EPOCHS = select(func.count()).where(_SAME_RUN).correlate(RunRow).scalar_subquery()
_NEXT = aliased(EpochRow)
_BEFORE_GAP = (
    select(func.min(EpochRow.epoch))
    .where(
        _SAME_RUN,
        ~select(_NEXT.epoch)
        .where(_NEXT.key == EpochRow.key, _NEXT.epoch == EpochRow.epoch + 1)
        .correlate(EpochRow)
        .exists(),
    )
    .correlate(RunRow)
    .scalar_subquery()
)
# Almost no run has a gap, so that the last case is rarely computed
RECORDED_EPOCHS = case((_EPOCHS == LAST_EPOCH, _EPOCHS), (_FIRST_EPOCH > 1, 0), else_=_BEFORE_GAP)


def run_tables() -> list[Table]:
    """Return the tables whose rows belong to a run, each after the tables it refers to."""
    return [table for table in Base.metadata.sorted_tables if "key" in table.columns]


def to_stored_run(row: Row[*tuple[Any, ...]], live_drivers: Container[str | None]) -> StoredRun:
    """Convert a row of `RUN_COLUMNS` with heartbeat, last epoch and the last one before a gap.

    Raises: DamagedValueError.
    """
    values = dict(row._mapping)
    values["alive"] = row.status in OPEN and row.driver in live_drivers
    values["epoch"], values["recorded"] = row.epoch or 0, row.recorded or 0
    try:
        values["status"] = Status(row.status)
        values["checkpoints"] = tuple(map(_checkpoint, row.checkpoints))
        _require_texts(row.packages or {})
    except (TypeError, ValueError) as error:
        raise DamagedValueError(f"the record of the run {row.key}: {error}") from error
    for name in SHOWN:
        values[name] = row._mapping[name] and printable(row._mapping[name])
    values["error"] = row.error and printable_lines(row.error)
    return StoredRun(**values)


def _checkpoint(item: Any) -> Checkpoint:
    found = Checkpoint(**item)
    if not (isinstance(found.epoch, int) and isinstance(found.path, str)):
        raise ValueError(f"{item!r} is not a checkpoint")
    return found


def _require_texts(packages: dict[str, Any]) -> None:
    for name, version in packages.items():
        if not isinstance(version, str):
            raise ValueError(f"the version of the package {name} is {version!r}")


def to_attempt(row: AttemptRow) -> Attempt:
    """Convert the row of an attempt."""
    return Attempt(**{item.name: getattr(row, item.name) for item in fields(Attempt)})
