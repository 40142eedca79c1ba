"""Plain values read from the store. Times are ISO 8601, UTC."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import psutil

LEASE_S = 60.0  # a driver that has not said it is alive for so long is taken for dead


class Status(StrEnum):
    """What is known of a run."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    UNSOUND = "unsound"  # trained, and its network is not 1-Lipschitz: no number of it is used
    INTERRUPTED = "interrupted"


OPEN = (Status.PENDING, Status.RUNNING)  # a driver has it, or had until it was lost


@dataclass(frozen=True)
class Epoch:
    """The metrics of an epoch, and when they were measured."""

    epoch: int
    values: Mapping[str, float]
    at: str


@dataclass(frozen=True)
class Checkpoint:
    """A saved state: how many epochs it has done and where it lies (a path or a URI)."""

    epoch: int
    path: str

    @property
    def ours(self) -> bool:
        """Whether it is a folder that Ray wrote for us, and ours to remove.

        What `python -m aol` saved is a file in a folder of somebody's own.
        """
        return not self.path.endswith(".pt")


@dataclass(frozen=True)
class Attempt:
    """One try of a run; `outcome` and `finished_at` are None while it goes on."""

    from_epoch: int
    driver: str
    started_at: str
    finished_at: str | None
    outcome: str | None


@dataclass(frozen=True)
class StoredRun:
    """What the store knows of a run."""

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
    recorded: int  # how many are recorded: `epoch` if none is missing
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
    certificate: (
        Mapping[str, Any] | None
    )  # `aol.certification.certificate.LipschitzCertificate` and its arithmetic

    @property
    def alive(self) -> bool:
        """Whether the driver that queued or trains this run was there until lately."""
        if self.status not in OPEN or not self.heartbeat_at or not self.driver:
            return False
        host, _, process = self.driver.rpartition(":")
        if host == socket.gethostname() and not _process_exists(int(process)):
            return False
        silent = datetime.now(UTC) - datetime.fromisoformat(self.heartbeat_at)
        return silent.total_seconds() < LEASE_S


def _process_exists(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
