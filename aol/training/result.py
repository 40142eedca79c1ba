"""The result of a run after its last epoch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from aol.training.trainer import Trainer


@dataclass(frozen=True)
class RunResult:
    """The result of a run that trained to its last epoch.

    `margins` of the test set as little-endian float32; `certificate` as plain values, with the
    singular values of the network and the outcome of an attack; `violations` that
    `aol.certification.lipschitz` found, none for a sound network.
    """

    margins: bytes
    certificate: dict[str, Any]
    violations: tuple[str, ...]

    @property
    def outcome(self) -> Literal["done", "unsound"]:
        """Return `done` for a sound network, whose numbers may be used."""
        return "unsound" if self.violations else "done"

    @property
    def error(self) -> str | None:
        """Return the violations in one line, None for a sound network."""
        if not self.violations:
            return None
        more = len(self.violations) - 1
        return self.violations[0] + (f" (and {more} more)" if more else "")


def evaluate_result(trainer: "Trainer") -> RunResult:
    """Return a trained run's margins, certificate and attack. Raises: DivergedError."""
    margins = trainer.margins().numpy().astype("<f4").tobytes()
    found = trainer.certificate()
    certificate = {
        "arithmetic": trainer.config.certify,
        **found.as_dict(),
        "singular_values": trainer.singular_values(),
    }
    if outcome := trainer.measure_attack():
        certificate["attack"] = outcome
    return RunResult(margins, certificate, found.violations)
