"""The time of an epoch, estimated from a run's latest ones."""

from collections.abc import Iterable, Mapping
from statistics import fmean

from aol.training.resume import TIMED_EPOCHS


def epochs_to_read(cycles: Iterable[int]) -> int:
    """Return how many of the latest epochs are enough, given the epochs between evaluations."""
    return TIMED_EPOCHS + max(cycles, default=0)


def mean_seconds(seconds: Mapping[int, float], cycle: int, epochs: int) -> float:
    """Return the mean seconds of an epoch, over whole cycles from one evaluation to the next.

    `seconds` are those of a run's latest epochs. The last of all its epochs is left out if there is
    another: it takes longer, because it ends with the certified evaluation.
    """
    count = cycle * -(-TIMED_EPOCHS // cycle)
    usual = [value for epoch, value in sorted(seconds.items()) if epoch < epochs]
    return fmean(usual[-count:] or seconds.values())
