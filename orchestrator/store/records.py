"""Plain values read from the store. Times are ISO 8601 in UTC."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import psutil


class Status(StrEnum):
    """The state of a run."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    UNSOUND = "unsound"  # trained, but the network is not 1-Lipschitz: its numbers are not used
    INTERRUPTED = "interrupted"


OPEN = (Status.PENDING, Status.RUNNING)  # a driver trains or queued the run, unless it was lost
ENDED = (Status.DONE, Status.DIVERGED, Status.UNSOUND)  # no epoch will be trained again
HEARTBEAT_TIMEOUT_S = 60.0  # a driver without a heartbeat for this long is considered dead


@dataclass(frozen=True)
class Epoch:
    """The metrics of an epoch and the time at which they were recorded."""

    epoch: int
    values: Mapping[str, float]
    at: str


@dataclass(frozen=True)
class MetricRange:
    """The mean, the smallest and the largest value of a metric over several runs."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: the number of completed epochs and its location, a path or URI."""

    epoch: int
    path: str

    @property
    def managed(self) -> bool:
        """Return whether Ray wrote it, as a folder that may be deleted.

        `python -m aol` saves a single file in a folder that belongs to the user.
        """
        return not self.path.endswith(".pt")


@dataclass(frozen=True)
class Attempt:
    """One attempt to train a run; `finished_at` and `outcome` are None until it ends."""

    from_epoch: int
    driver: str
    started_at: str
    finished_at: str | None
    outcome: str | None


@dataclass(frozen=True)
class StoredRun:
    """The record of a run, without its metrics and margins."""

    key: str
    run_id: int
    name: str
    profile: str
    seed: int
    digest: str
    config: Mapping[str, Any]
    epochs: int
    status: Status
    epoch: int  # the last one recorded, 0 before the first
    recorded: int  # the last one before the first that is missing; equals `epoch` if none is
    checkpoints: tuple[Checkpoint, ...]
    created_at: str
    started_at: str | None
    finished_at: str | None
    heartbeat_at: str | None
    driver: str | None
    host: str | None
    device: str | None
    git_commit: str | None
    packages: Mapping[str, str] | None
    data_fingerprint: str | None
    mlflow_run_id: str | None
    mlflow_status: str | None
    error: str | None
    certificate: Mapping[str, Any] | None  # of `aol.certification`, with its arithmetic

    @property
    def alive(self) -> bool:
        """Return whether the run is open and its driver is alive."""
        if self.status not in OPEN or not self.heartbeat_at or not self.driver:
            return False
        host, _, process = self.driver.rpartition(":")
        if host == socket.gethostname() and not _process_exists(int(process)):
            return False
        age = datetime.now(UTC) - datetime.fromisoformat(self.heartbeat_at)
        return age.total_seconds() < HEARTBEAT_TIMEOUT_S


def _process_exists(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
