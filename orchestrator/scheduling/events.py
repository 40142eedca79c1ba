"""The events of runs, as plain values, and the protocol of their recorders."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator.provenance import Provenance, reported_provenance
from orchestrator.scheduling.storage import read_result
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Checkpoint, Status


@dataclass(frozen=True)
class Started:
    """A run got its resources, for the first time or again."""

    run: RunSpec


@dataclass(frozen=True)
class Placed:
    """A run's worker is ready to train; `epoch` epochs are completed already.

    `provenance` is the worker's own.
    """

    run: RunSpec
    host: str
    device: str
    epoch: int
    provenance: Provenance | None = None


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


def placed_event(run: RunSpec, result: Mapping[str, Any]) -> Placed:
    """Return the event for the first result of a worker."""
    origin = reported_provenance(result["environment"])
    return Placed(run, result["host"], result["device"], result["epoch"], origin)


def finished_event(run: RunSpec, kind: str, error: str | None, path: str | None) -> Finished:
    """Return the event for the last report of a worker, whose kind is the status.

    `path` is the location of margins and certificate. If it cannot be read, the run is interrupted.
    """
    if path is None:
        return Finished(run, Status(kind), error)
    try:
        result = read_result(path)
        margins = base64.b64decode(result["margins"], validate=True)
        certificate = dict(result["certificate"])
    except (OSError, ValueError, KeyError, TypeError) as unreadable:
        text = f"its result cannot be read from {path}: {unreadable}"
        return Finished(run, Status.INTERRUPTED, text)
    return Finished(run, Status(kind), error, margins, certificate)
