"""Plain values read from the store. Times are ISO 8601 in UTC."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from aol.config import TrainConfig, flatten, from_dict


class Status(StrEnum):
    """The state of a run."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DIVERGED = "diverged"
    UNSOUND = "unsound"  # trained, but the network is not 1-Lipschitz: its numbers are not used
    INTERRUPTED = "interrupted"


DAMAGED = (AttributeError, LookupError, TypeError, ValueError)  # raised by damaged settings
OPEN = (Status.PENDING, Status.RUNNING)  # a driver trains or queued the run, unless it was lost
ENDED = (Status.DONE, Status.DIVERGED, Status.UNSOUND)  # no epoch will be trained again


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
    """One attempt to train a run; `finished_at` and `outcome` are None until it ends.

    Older versions recorded the host, the device and the origin of a run's last attempt only.
    """

    from_epoch: int
    driver: str
    started_at: str
    finished_at: str | None = None
    outcome: str | None = None
    host: str | None = None
    device: str | None = None
    gpu_driver: str | None = None
    git_commit: str | None = None
    git_diff: str | None = None
    packages: Mapping[str, str] | None = None


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
    heartbeat_at: str | None = field(compare=False)  # of its driver: it changes without the run
    driver: str | None
    alive: bool  # it is open, and its driver is alive
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
    def dataset(self) -> str:
        """Return the name of the dataset, or "?" if the settings are damaged."""
        data = self.config.get("data")
        name = data.get("name") if isinstance(data, Mapping) else None
        return name if isinstance(name, str) else "?"

    @property
    def eval_every(self) -> int:
        """Return the number of epochs from one evaluation to the next; older stores lack it."""
        value = self.config.get("eval_every")
        return value if isinstance(value, int) and value > 0 else 1


def describe_changes(before: Mapping[str, object], now: TrainConfig) -> str:
    """Return the settings that differ, such as `epochs 10 → 20`."""
    try:
        old, new = flatten(from_dict(dict(before))), flatten(now)
    except DAMAGED:
        return "damaged settings in the store"
    return ", ".join(
        f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]
    )


def settings_conflict(stored: StoredRun, train: TrainConfig) -> str | None:
    """Return why a stored run with the digest of `train` has other settings, or None if it has not.

    A digest has only 32 bits, so that two settings may have the same one.
    """
    try:
        known = from_dict(dict(stored.config))
    except DAMAGED as error:
        return f"run {stored.key} has damaged settings in the store: {error!r}"
    known = replace(known, seed=train.seed, attack=train.attack)  # no part of the digest
    if known == train:
        return None
    changes = describe_changes(asdict(known), train)
    return (
        f"run {stored.key} has other settings in the store ({changes}): they were edited, or the "
        "digests are equal by chance; change any setting of the run, or choose another --store"
    )
