"""What the certificate of a finished run says about its network."""

from dataclasses import dataclass

from aol.certification.certificate import LipschitzCertificate
from aol.certification.singular_values import Spectrum, share_nearly_orthogonal
from orchestrator.spec.fields import LAYER_NORM, NEARLY_ORTHOGONAL, UNDER_ATTACK
from orchestrator.store import StoredRun


def largest_bound(run: StoredRun) -> float | None:
    """Return the largest proven bound of a layer's norm, None without a certificate."""
    try:
        certificate = LipschitzCertificate.from_dict(run.certificate or {})
    except ValueError:
        return None
    return max((layer.upper for layer in certificate.layers), default=None)


def nearly_orthogonal(run: StoredRun) -> float | None:
    """Return the percentage of the layers' singular values above 0.9, None if not measured."""
    try:
        records = (run.certificate or {})["singular_values"]["trained"]
        return 100 * share_nearly_orthogonal([Spectrum.from_dict(one) for one in records])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


@dataclass(frozen=True)
class Attacked:
    """An attack on the first `images` test images: the shares that are right before and after."""

    radius: float
    images: int
    accuracy: float
    robust: float


def attacked(run: StoredRun) -> Attacked | None:
    """Return what an attack left of the accuracy, None without one or if it is damaged."""
    try:
        record = (run.certificate or {})["attack"]
        return Attacked(
            float(record["radius"]),
            int(record["images"]),
            float(record["accuracy"]),
            float(record["robust"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def under_attack(run: StoredRun) -> float | None:
    """Return the percentage of the attacked images that stayed right, None without an attack."""
    found = attacked(run)
    return 100 * found.robust if found else None


MEASURES = {
    LAYER_NORM: largest_bound,
    NEARLY_ORTHOGONAL: nearly_orthogonal,
    UNDER_ATTACK: under_attack,
}
