"""Measurements of a finished run's network, from its certificate."""

from dataclasses import dataclass

from aol.certification.certificate import LipschitzCertificate
from aol.certification.singular_values import Spectrum, share_nearly_orthogonal
from orchestrator.spec.experiment import RunSpec
from orchestrator.spec.fields import Measurement
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
class AttackOutcome:
    """An attack on the first `images` test images: the shares that are right before and after."""

    radius: float
    steps: int
    images: int
    accuracy: float
    robust: float


def attack_outcome(run: StoredRun) -> AttackOutcome | None:
    """Return the outcome of the attack on a run, None without one.

    Raises: ValueError if its record is damaged.
    """
    record = (run.certificate or {}).get("attack")
    if record is None:
        return None
    try:
        return AttackOutcome(
            float(record["radius"]),
            int(record["steps"]),
            int(record["images"]),
            float(record["accuracy"]),
            float(record["robust"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"lacks {error}") from error


def under_attack(run: StoredRun, spec: RunSpec) -> float | None:
    """Return the percentage of the attacked images that stayed right.

    None without an attack, or if it was another one than that of the profile.
    """
    asked = spec.train.attack
    try:
        found = attack_outcome(run)
    except ValueError:
        return None
    if found is None or asked is None:
        return None
    images = min(asked.images or spec.train.data.test_images, spec.train.data.test_images)
    same = (found.radius, found.steps, found.images) == (asked.radius, asked.steps, images)
    return 100 * found.robust if same else None


def measure(name: Measurement, run: StoredRun, spec: RunSpec) -> float | None:
    """Return a measurement of a run's network, None if it was not made."""
    match name:
        case "layer norm":
            return largest_bound(run)
        case "nearly orthogonal":
            return nearly_orthogonal(run)
        case "under attack":
            return under_attack(run, spec)
