"""What a trained run comes to: margins, certificate, and whether its numbers may be used."""

from dataclasses import dataclass
from typing import Any, Literal

from aol.train import Trainer


@dataclass(frozen=True)
class Result:
    """The end of a run that trained to its last epoch.

    `margins` of the test set as little-endian float32; `certificate` as plain values; `violations`
    of the gate in `aol.lipschitz`, none for a sound network.
    """

    margins: bytes
    certificate: dict[str, Any]
    violations: tuple[str, ...]

    @property
    def outcome(self) -> Literal["done", "unsound"]:
        """Whether the numbers may be used."""
        return "unsound" if self.violations else "done"

    @property
    def error(self) -> str | None:
        """The violations in one line, None for a sound network."""
        if not self.violations:
            return None
        more = len(self.violations) - 1
        return self.violations[0] + (f" (and {more} more)" if more else "")


def result_of(trainer: Trainer) -> Result:
    """Certify a trained network and probe it. Raises: DivergedError."""
    margins = trainer.margins().numpy().astype("<f4").tobytes()
    gate = trainer.certificate()
    certificate = {"arithmetic": trainer.config.certify, **gate.as_dict()}
    return Result(margins, certificate, gate.violations)
