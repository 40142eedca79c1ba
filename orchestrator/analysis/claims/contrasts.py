"""Differences between trained runs, and the evidence for their signs; see `docs/claims.md`.

Runs of one metric are compared by their seeds, if each has two or more, and else by their test
images. Values and differences are percentage points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice, permutations
from math import factorial, sqrt
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]

CONFIDENCE = 0.95
DRAWS = 20_000  # of the bootstrap, and of the means' distribution
SEED = 1_000_003  # of these draws: a report says the same again
EXACT_ROWS = 6  # Page's exact distribution up to so many rows


@dataclass(frozen=True)
class Step:
    """One comparison that a claim is made of: its difference is claimed to be positive.

    `interval` is the 95 % confidence interval of the difference. `p_holds` is the p-value against
    the hypothesis that the difference is not positive, `p_opposite` against that it is not
    negative.
    """

    name: str
    difference: float
    interval: tuple[float, float]
    p_holds: float
    p_opposite: float


class Contrasts(Protocol):
    """Runs of one metric, to be compared with each other."""

    def mean(self, run: int) -> float:
        """Return the mean value of a run, in percent."""
        ...

    def step(self, name: str, higher: int, lower: int) -> Step:
        """Return the comparison of a run that is claimed to be higher with another."""
        ...

    def highest_probability(self, run: int, sign: int = 1) -> float:
        """Return the probability that a run's true value is the highest; -1: the lowest."""
        ...


@dataclass(frozen=True)
class SeedSpread:
    """The residual standard deviation between seeds and its degrees of freedom."""

    sd: float
    freedom: float


@dataclass(frozen=True)
class SeedContrasts:
    """Runs compared by the spread between their seeds, by a t-test.

    `values` has, per run, the value of each of its seeds; each run has as many. `spread` is what is
    left of them without the means of the runs and, if they share their seeds, without those of the
    seeds. Source: analysis of variance in blocks.
    """

    values: Mapping[int, Sequence[float]]
    spread: SeedSpread
    seeds: int

    def mean(self, run: int) -> float:
        """Return the mean over the seeds."""
        return fmean(self.values[run])

    def step(self, name: str, higher: int, lower: int) -> Step:
        """Return the comparison of two runs."""
        from scipy.special import stdtr, stdtrit

        difference = self.mean(higher) - self.mean(lower)
        error, freedom = self.spread.sd * sqrt(2 / self.seeds), self.spread.freedom
        half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
        return Step(
            name,
            difference,
            (difference - half, difference + half),
            float(stdtr(freedom, -difference / error)),
            float(stdtr(freedom, difference / error)),
        )

    def highest_probability(self, run: int, sign: int = 1) -> float:
        """Return the probability under independent t distributions of the runs' means."""
        import numpy as np

        generator, freedom = np.random.default_rng(SEED), self.spread.freedom
        runs = list(self.values)
        noise = generator.standard_normal((DRAWS, len(runs)))
        scale = self.spread.sd * np.sqrt(freedom / generator.chisquare(freedom, (DRAWS, 1)))
        means = np.array([self.mean(each) for each in runs]) + noise * scale / sqrt(self.seeds)
        return float(np.mean((sign * means).argmax(axis=1) == runs.index(run)))

    def with_seeds(self, seeds: int) -> "SeedContrasts":
        """Return what so many seeds would show if means and spread stayed as they are."""
        freedom = self.spread.freedom * (seeds - 1) / (self.seeds - 1)
        return replace(self, spread=replace(self.spread, freedom=freedom), seeds=seeds)

    def trend_p(self, runs: Sequence[int]) -> float:
        """Return the p-value of Page's test that these runs increase in their order."""
        return trend_p([list(islice(cycle(self.values[run]), self.seeds)) for run in runs])


class ImageContrasts:
    """Runs of one seed each, compared by the paired bootstrap over their test images.

    `values` has, per run, the value of every test image in percent: 100 where the image counts.
    """

    seeds = 1

    def __init__(self, values: "Mapping[int, Array]") -> None:
        self.values = values

    @cached_property
    def _means(self) -> "dict[int, Array]":
        """The mean of every run in every draw of as many images."""
        import numpy as np

        images_of_runs = np.stack(list(self.values.values()))
        patterns, counts = np.unique(images_of_runs, axis=1, return_counts=True)
        images = int(counts.sum())
        drawn = np.random.default_rng(SEED).multinomial(images, counts / images, size=DRAWS)
        return dict(zip(self.values, patterns @ drawn.T / images, strict=True))

    def mean(self, run: int) -> float:
        """Return the mean over the images."""
        return float(self.values[run].mean())

    def step(self, name: str, higher: int, lower: int) -> Step:
        """Return the comparison of two runs. Source: B. Efron, R. Tibshirani (1993)."""
        import numpy as np

        drawn = self._means[higher] - self._means[lower]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        return Step(
            name,
            self.mean(higher) - self.mean(lower),
            (float(low), float(high)),
            float((np.sum(drawn <= 0) + 1) / (DRAWS + 1)),
            float((np.sum(drawn >= 0) + 1) / (DRAWS + 1)),
        )

    def highest_probability(self, run: int, sign: int = 1) -> float:
        """Return the share of draws in which the run's mean is the highest."""
        import numpy as np

        runs = list(self.values)
        means = np.stack([self._means[each] for each in runs])
        return float(np.mean((sign * means).argmax(axis=0) == runs.index(run)))


def pool_spread(
    groups: Sequence[Mapping[int, Sequence[float]]], *, paired: bool, least: float
) -> SeedSpread:
    """Return the spread between seeds of runs of one metric, pooled over groups.

    In each group, every run has its own mean; if `paired`, every seed has its own effect too.
    `least` is the smallest standard deviation that is assumed: values are shares of a whole number
    of images, and equal ones do not show that there is no spread.
    """
    import numpy as np

    squares, freedom = 0.0, 0
    for group in groups:
        values = np.array(list(group.values()), dtype=float)
        rows, seeds = values.shape
        residuals = values - values.mean(axis=1, keepdims=True)
        if paired:
            residuals -= residuals.mean(axis=0, keepdims=True)
        squares += float((residuals**2).sum())
        freedom += (rows - 1 if paired else rows) * (seeds - 1)
    return SeedSpread(max(sqrt(squares / freedom), least), freedom)


def trend_p(values: Sequence[Sequence[float]]) -> float:
    """Return the p-value of Page's test that the rows increase in their order.

    `values` has a row per run and a column per seed. The null hypothesis is that within a seed
    every order of the runs is equally likely.

    Source: E. B. Page (1963). Exact up to six rows, else by the normal approximation.
    """
    import numpy as np

    ranks = _ranks(np.array(values, dtype=float))
    rows, seeds = ranks.shape
    statistic = float((np.arange(1, rows + 1) @ ranks).sum())
    if rows > EXACT_ROWS:
        from scipy.special import ndtr

        mean = seeds * rows * (rows + 1) ** 2 / 4
        variance = seeds * rows**2 * (rows + 1) * (rows**2 - 1) / 144
        return float(ndtr(-(statistic - 0.5 - mean) / sqrt(variance)))
    largest = sum(rank * rank for rank in range(1, rows + 1))
    block = np.zeros(largest + 1)
    for order in permutations(range(1, rows + 1)):
        block[sum(place * rank for place, rank in enumerate(order, start=1))] += 1
    block /= factorial(rows)
    total = np.ones(1)
    for _ in range(seeds):
        total = np.convolve(total, block)
    return float(total[int(np.ceil(statistic - 1e-9)) :].sum())


def _ranks(values: "Array") -> "Array":
    """Return the ranks within each column from 1; ties have their mean rank."""
    below = (values[None, :, :] < values[:, None, :]).sum(axis=1)
    equal = (values[None, :, :] == values[:, None, :]).sum(axis=1)
    ranks: Array = below + (equal + 1) / 2
    return ranks
