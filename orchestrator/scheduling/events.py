"""The events of runs, as plain values, and the protocol of their recorders."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Checkpoint, Status


@dataclass(frozen=True)
class Started:
    """A run got its resources, for the first time or again."""

    run: RunSpec


@dataclass(frozen=True)
class Placed:
    """A run's worker is ready to train; `epoch` epochs are completed already."""

    run: RunSpec
    host: str
    device: str
    epoch: int


@dataclass(frozen=True)
class EpochDone:
    """A run completed an epoch."""

    run: RunSpec
    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """A run's state was saved in a checkpoint."""

    run: RunSpec
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Finished:
    """A run ended, successfully or not; it may never have started."""

    run: RunSpec
    status: Status
    error: str | None = None
    margins: bytes | None = None  # little-endian float32
    certificate: Mapping[str, Any] | None = None  # of `aol.certification`, with its arithmetic


@dataclass(frozen=True)
class Tick:
    """Sent about ten times a second."""


Event = Started | Placed | EpochDone | Saved | Finished | Tick


class Recorder(Protocol):
    """Receives events: for the store, for MLflow, for the console."""

    def __call__(self, event: Event) -> None:
        """Record an event."""


def finished_event(run: RunSpec, result: Mapping[str, Any]) -> Finished:
    """Return the event for the last result of a worker, whose kind is the status."""
    margins = result.get("margins")
    return Finished(
        run,
        Status(result["kind"]),
        error=result.get("error"),
        margins=None if margins is None else base64.b64decode(margins),
        certificate=result.get("certificate"),
    )
