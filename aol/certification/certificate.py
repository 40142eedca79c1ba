"""The Lipschitz certificate of a network, the radii of the tables, a radius as text: no torch.

`aol.certification.lipschitz` makes certificates.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aol.errors import RadiusError

# A layer rescaled in float32 may exceed 1 by some 1e-7; one rounded to TF32 does by 1e-4. For 28
# layers a millionth each costs a radius 3e-5 of its length.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class LayerBound:
    """A layer's place and kind, the proven bound of its norm, and the largest stretch found."""

    name: str
    upper: float
    lower: float


@dataclass(frozen=True)
class LipschitzCertificate:
    """What is known of a network's Lipschitz constant in L2.

    `ratio` is the largest |f(x) - f(y)| / |x - y| found. `score_error` bounds the distance (L2)
    between the scores of an image, pixels in [0, 1], in float64 and in exact arithmetic, for
    products that are sums of products in any order.
    """

    layers: tuple[LayerBound, ...]
    ratio: float
    score_error: float
    tolerance: float

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "LipschitzCertificate":
        """What `as_dict` gave, but for its conclusions. Raises: ValueError."""
        try:
            layers = tuple(
                LayerBound(str(one["name"]), float(one["upper"]), float(one["lower"]))
                for one in record["layers"]
            )
            measured = (float(record[name]) for name in ("ratio", "score_error", "tolerance"))
            return cls(layers, *measured)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not what a gate measured: {error!r}") from error

    @property
    def upper(self) -> float:
        """A proven bound of the network: the product of its layers'."""
        return math.prod(layer.upper for layer in self.layers)

    @property
    def violations(self) -> tuple[str, ...]:
        """What contradicts the certificates, a sentence each; empty for a sound network."""
        limit = 1 + self.tolerance  # compared so that NaN is a violation too
        found = [
            f"{layer.name}: its bound is {layer.upper:.9g}, above {limit:.9g}"
            for layer in self.layers
            if not layer.upper <= limit
        ]
        found += [
            f"{layer.name}: stretches an input by {layer.lower:.9g}, its bound is {layer.upper:.9g}"
            for layer in self.layers
            if not layer.lower <= min(layer.upper, 1.0) + self.tolerance
        ]
        if not self.ratio <= self.upper + self.tolerance:
            found.append(
                f"the network stretches a difference by {self.ratio:.9g}, "
                f"its bound is {self.upper:.9g}"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "upper": self.upper, "violations": list(self.violations)}


RADII: dict[str, float] = {
    "cra_36": 36 / 255,
    "cra_72": 72 / 255,
    "cra_108": 108 / 255,
    "cra_1": 1.0,
}


def parse_radius(text: str) -> float:
    """The radius of `0.5` or `36/255`, in the units of the pixels. Raises: RadiusError."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise RadiusError(
            f"{text!r} is no radius; write a number that is not negative, like 0.5 or 36/255"
        )
    return value
