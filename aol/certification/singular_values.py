"""The record of measured singular values; reading it needs no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BINS = 50  # of equal width between 0 and 1
NEARLY = 0.9  # a singular value above it is nearly 1


@dataclass(frozen=True)
class Spectrum:
    """The singular values of an operator as shares of `BINS` equal bins from 0 to 1.

    Values above 1 by rounding are in the last bin. `size` is the number of singular values.
    """

    name: str
    size: int
    exact: bool
    shares: tuple[float, ...]

    @property
    def nearly_orthogonal(self) -> float:
        """Return the share of the singular values above 0.9."""
        return sum(self.shares[round(NEARLY * BINS) :])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON; shares have four decimals."""
        return {
            "name": self.name,
            "size": self.size,
            "exact": self.exact,
            "shares": [round(share, 4) for share in self.shares],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Spectrum":
        """Return the spectrum that `as_dict` stored. Raises: KeyError, TypeError, ValueError."""
        shares = tuple(map(float, record["shares"]))
        if len(shares) != BINS:
            raise ValueError(f"{len(shares)} shares, expected {BINS}")
        return cls(str(record["name"]), int(record["size"]), bool(record["exact"]), shares)


def share_nearly_orthogonal(spectra: Sequence[Spectrum]) -> float:
    """Return the share of all layers' singular values above 0.9."""
    sizes = sum(one.size for one in spectra)
    return sum(one.nearly_orthogonal * one.size for one in spectra) / sizes
