"""What happens to runs, as values; a recorder is anything that is called with them."""

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
    """A run's worker is up and said where it trains; `epoch` are done already."""

    run: RunSpec
    host: str
    device: str
    epoch: int


@dataclass(frozen=True)
class EpochDone:
    """A run finished its `epoch`-th epoch."""

    run: RunSpec
    epoch: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Saved:
    """A run's state is safe in a checkpoint."""

    run: RunSpec
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Finished:
    """A run ended, well or not; it may never have started."""

    run: RunSpec
    status: Status
    error: str | None = None
    margins: bytes | None = None  # little-endian float32
    certificate: Mapping[str, Any] | None = (
        None  # `aol.certification.certificate.LipschitzCertificate` and its arithmetic
    )


@dataclass(frozen=True)
class Tick:
    """Time passed; these runs are in training."""

    active: tuple[RunSpec, ...]


Event = Started | Placed | EpochDone | Saved | Finished | Tick


def finished_event(run: RunSpec, result: Mapping[str, Any]) -> Finished:
    """What a worker's last report says of its run; the report's kind is the status."""
    margins = result.get("margins")
    return Finished(
        run,
        Status(result["kind"]),
        error=result.get("error"),
        margins=None if margins is None else base64.b64decode(margins),
        certificate=result.get("certificate"),
    )


class Recorder(Protocol):
    """Anything that wants to hear about runs: the store, MLflow, the console, a test's list."""

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
