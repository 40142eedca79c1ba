"""Differences between trained runs, and the evidence for their signs; see `docs/claims.md`.

Runs of one metric are compared by their seeds, if each has two or more, and else by their test
images. Values and differences are percentage points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle, islice, permutations
from math import factorial, sqrt
from statistics import fmean, variance
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

    @property
    def seeds(self) -> int:
        """Return the number of seeds of each run that are compared."""
        ...

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
class SeedContrasts:
    """Runs compared by the spread between their seeds, by a t-test for each pair.

    `values` has, per run, the value of each of its seeds; each run has as many. If `paired`, the
    runs have the same seeds in the same order, and the test is the paired t-test; else it is
    Welch's. `least` is the smallest standard deviation that is assumed for a run: values are shares
    of a whole number of images, and equal ones do not show that there is no spread.
    """

    values: Mapping[int, Sequence[float]]
    paired: bool
    least: float
    shown: int | None = None  # other number of seeds, with the same means and spread

    @property
    def seeds(self) -> int:
        """Return the number of seeds of each run."""
        return self.shown or len(next(iter(self.values.values())))

    def mean(self, run: int) -> float:
        """Return the mean over the seeds."""
        return fmean(self.values[run])

    def step(self, name: str, higher: int, lower: int) -> Step:
        """Return the comparison of two runs."""
        difference = self.mean(higher) - self.mean(lower)
        error, freedom = self._error(higher, lower)
        return t_step(name, difference, error, freedom)

    def highest_probability(self, run: int, sign: int = 1) -> float:
        """Return the probability under independent t distributions of the runs' means."""
        import numpy as np

        generator, runs = np.random.default_rng(SEED), list(self.values)
        noise = generator.standard_t(self.seeds - 1, (DRAWS, len(runs)))
        errors = [sqrt(self._variance(each) / self.seeds) for each in runs]
        means = np.array([self.mean(each) for each in runs]) + noise * errors
        return _share_of_firsts(sign * means.T, runs.index(run))

    def with_seeds(self, seeds: int) -> "SeedContrasts":
        """Return what so many seeds would show if means and spread stayed as they are."""
        return replace(self, shown=seeds)

    def trend_p(self, runs: Sequence[int]) -> float:
        """Return the p-value of Page's test that these runs increase in their order."""
        return trend_p([list(islice(cycle(self.values[run]), self.seeds)) for run in runs])

    def _variance(self, run: int) -> float:
        return max(variance(self.values[run]), self.least**2)

    def _error(self, higher: int, lower: int) -> tuple[float, float]:
        """Return the standard error of a difference of means and its degrees of freedom.

        Source: Student's paired t-test; B. L. Welch (1947) with Satterthwaite's approximation.
        """
        if self.paired:
            pairs = zip(self.values[higher], self.values[lower], strict=True)
            spread = max(variance(one - other for one, other in pairs), 2 * self.least**2)
            return sqrt(spread / self.seeds), self.seeds - 1
        first, second = (self._variance(run) / self.seeds for run in (higher, lower))
        freedom = (first + second) ** 2 / (first**2 + second**2) * (self.seeds - 1)
        return sqrt(first + second), freedom


@dataclass(frozen=True)
class PublishedContrasts:
    """Runs of one published value each, compared by an assumed spread between replicates."""

    values: Mapping[int, float]
    sd: float
    freedom: float
    seeds: int = 1

    def mean(self, run: int) -> float:
        """Return the published value."""
        return self.values[run]

    def step(self, name: str, higher: int, lower: int) -> Step:
        """Return the comparison of two runs."""
        difference = self.values[higher] - self.values[lower]
        return t_step(name, difference, self.sd * sqrt(2), self.freedom)

    def highest_probability(self, run: int, sign: int = 1) -> float:
        """Return the probability under t distributions around the published values."""
        import numpy as np

        runs = list(self.values)
        noise = np.random.default_rng(SEED).standard_t(self.freedom, (DRAWS, len(runs)))
        means = np.array(list(self.values.values())) + self.sd * noise
        return _share_of_firsts(sign * means.T, runs.index(run))


def t_step(name: str, difference: float, error: float, freedom: float) -> Step:
    """Return the step of a difference with Student's t distribution."""
    from scipy.special import stdtr, stdtrit

    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return Step(
        name,
        difference,
        (difference - half, difference + half),
        float(stdtr(freedom, -difference / error)),
        float(stdtr(freedom, difference / error)),
    )


def _share_of_firsts(values: "Array", row: int) -> float:
    """Return the share of columns in which a row is the highest; rows that tie share it."""
    import numpy as np

    firsts = values == values.max(axis=0)
    return float(np.mean(firsts[row] / firsts.sum(axis=0)))


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
        return _share_of_firsts(
            sign * np.stack([self._means[each] for each in runs]), runs.index(run)
        )


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
