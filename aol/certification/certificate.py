"""The Lipschitz certificate of a network, the radii of the tables, a radius as text: no torch.

`aol.certification.lipschitz` makes certificates.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from aol.errors import RadiusError

# A layer rescaled in float32 may exceed 1 by some 1e-7; one rounded to TF32 does by 1e-4. For 28
# layers a millionth each costs a radius 3e-5 of its length.
TOLERANCE = 1e-6

Kind = Literal["aol", "plain", "declared"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class LayerBound:
    """A layer's place, the bound `upper` of its norm, and the largest stretch found, `lower`.

    The bound of an "aol" layer is proven and has to be 1. That of a "plain" module (`nn.Linear`,
    `nn.Conv2d`, a pooling) is proven and may be any number. A "declared" one is not proven: it is
    what the module's own `lipschitz_bound()` returned.
    """

    name: str
    upper: float
    lower: float
    kind: Kind = "aol"

    @property
    def declared(self) -> bool:
        """Return whether the bound rests on the module's own word."""
        return self.kind == "declared"

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "LayerBound":
        """Return the bound that `as_dict` stored. Raises: KeyError, TypeError, ValueError."""
        kind = record.get("kind", "aol")
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is not a kind of layer")
        return cls(str(record["name"]), float(record["upper"]), float(record["lower"]), kind)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without the kind of an AOL layer: stored records have none."""
        record = asdict(self)
        if self.kind == "aol":
            del record["kind"]
        return record

    def bound_violation(self, tolerance: float) -> str | None:
        """Return a sentence if the bound is not finite, or above 1 for an AOL layer."""
        limit = 1 + tolerance
        if self.kind == "aol" and not self.upper <= limit:
            return f"{self.name}: its bound is {self.upper:.9g}, above {limit:.9g}"
        if self.kind != "aol" and not self.upper < math.inf:
            return f"{self.name}: its bound is {self.upper:.9g}, its weights are not finite"
        return None

    def stretch_violation(self, tolerance: float) -> str | None:
        """Return a sentence if the stretch found contradicts the bound (or is NaN)."""
        bound = min(self.upper, 1.0) if self.kind == "aol" else self.upper
        if self.lower <= bound + tolerance * max(1.0, bound):
            return None
        whose = "declared bound" if self.declared else "bound"
        return (
            f"{self.name}: stretches an input by {self.lower:.9g}, its {whose} is {self.upper:.9g}"
        )


@dataclass(frozen=True)
class LipschitzCertificate:
    """Proven and measured facts about a network's Lipschitz constant in L2.

    `ratio` is the largest |f(x) - f(y)| / |x - y| found. `score_error` bounds the distance (L2)
    between the scores of an image, pixels in [0, 1], in float64 and in exact arithmetic, for
    products that are sums of products in any order; the rounding inside of modules that declare
    their bound is not in it.
    """

    layers: tuple[LayerBound, ...]
    ratio: float
    score_error: float
    tolerance: float

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "LipschitzCertificate":
        """Return the certificate that `as_dict` stored; conclusions are drawn again.

        Raises: ValueError if the record is not one.
        """
        try:
            layers = tuple(LayerBound.from_dict(one) for one in record["layers"])
            measured = (float(record[name]) for name in ("ratio", "score_error", "tolerance"))
            return cls(layers, *measured)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a certificate: {error!r}") from error

    @property
    def upper(self) -> float:
        """Return a bound of the network: the product of its layers', where others count as 1.

        It is proven if no layer's bound is declared.
        """
        return math.prod(layer.upper for layer in self.layers)

    @property
    def violations(self) -> tuple[str, ...]:
        """Return a sentence for each contradiction to the bounds; none for a sound network.

        An AOL layer violates its promise with a bound above 1, any other layer with a bound that is
        not finite; each layer, and the network, by a stretch above its bound. Tolerances are
        relative to bounds above 1.
        """
        bounds = (layer.bound_violation(self.tolerance) for layer in self.layers)
        stretches = (layer.stretch_violation(self.tolerance) for layer in self.layers)
        found = [line for line in (*bounds, *stretches) if line is not None]
        if not self.ratio <= self.upper + self.tolerance * max(1.0, self.upper):
            found.append(
                f"the network stretches a difference by {self.ratio:.9g}, "
                f"its bound is {self.upper:.9g}"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "layers": [layer.as_dict() for layer in self.layers],
            "ratio": self.ratio,
            "score_error": self.score_error,
            "tolerance": self.tolerance,
            "upper": self.upper,
            "violations": list(self.violations),
        }


RADII: dict[str, float] = {
    "cra_36": 36 / 255,
    "cra_72": 72 / 255,
    "cra_108": 108 / 255,
    "cra_1": 1.0,
}


def parse_radius(text: str) -> float:
    """Return the radius of `0.5` or `36/255`, in the units of the pixels. Raises: RadiusError."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise RadiusError(
            f"{text!r} is not a radius; write a number that is not negative, like 0.5 or 36/255"
        )
    return value
