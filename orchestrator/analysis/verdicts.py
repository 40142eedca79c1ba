"""Statistical tests of whether each cell is reproduced; explained in `docs/verdicts.md`.

The paper trained every run once, so a published value is one draw, like each of ours. The
difference between our mean of n seeds and the published value has the variance
sd**2 * (1 + 1/n), and the published value is known only to half a unit of its last printed
decimal. The standard deviation sd is pooled from the seeds and a stated prior, which counts as a
number of further degrees of freedom: with one seed, sd is the prior. All values are percentage
points.

A seed that diverged or is unsound has no value. The others are then a selection, so a cell with
such a seed is not reproduced, whatever its finished seeds show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt
from statistics import fmean
from typing import Any

from orchestrator.analysis.tables import Cell
from orchestrator.formatting import format_percent, pluralize
from orchestrator.spec.schema import Reproduction

SIGNIFICANCE_LEVEL = 0.05
MAX_SEEDS = 100  # a cell that needs more seeds counts as unresolvable


class Verdict(StrEnum):
    """The outcome of testing a cell."""

    REPRODUCED = "reproduced"
    DIFFERS = "differs"
    UNDERPOWERED = "underpowered"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True)
class Spread:
    """A standard deviation between seeds, with its degrees of freedom."""

    sd: float
    freedom: float
    seeds: int  # that were pooled with the prior

    @property
    def from_prior(self) -> bool:
        """Return whether it is the prior alone."""
        return self.seeds < 2


@dataclass(frozen=True)
class CellVerdict:
    """A cell with its verdict and the tests behind it; None where nothing was measured.

    `interval` is the 95% confidence interval of the true difference. All of it lies beyond the
    margin if the cell differs; the 90% interval lies within the margin if the cell is reproduced.
    `p_equivalent` is the p-value of the two one-sided tests. `p_differs` is that of a difference
    beyond the margin, after Holm's correction over all measured cells. `further_seeds` is the
    number of seeds that would resolve an undecided cell if its mean, its spread and the other cells
    stayed as they are, or a cell without a value if it came out as published; None if no number up
    to `MAX_SEEDS` would.
    """

    cell: Cell
    verdict: Verdict
    spread: Spread | None = None
    interval: tuple[float, float] | None = None
    p_equivalent: float | None = None
    p_differs: float | None = None
    further_seeds: int | None = None

    @property
    def binomial(self) -> float | None:
        """Return half the width of the 95% Wilson interval of the share of test images.

        None if the value is not a percentage, which a damaged store may contain.
        """
        if self.cell.measured is None or not 0 <= self.cell.measured <= 100:
            return None
        from scipy.special import ndtri

        images = self.cell.images
        share = round(self.cell.measured / 100 * images) / images
        z = float(ndtri(1 - SIGNIFICANCE_LEVEL / 2))
        deviation = sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
        return 100 * z * deviation / (1 + z**2 / images)


def judge_cells(cells: Sequence[Cell], rules: Reproduction) -> list[CellVerdict]:
    """Return the verdict of every cell, with Holm's correction over the measured ones."""
    spreads = [_pooled_spread(cell, rules) if cell.values else None for cell in cells]
    p_differs = holm(
        {
            index: _p_differs(cells[index], rules, spread)
            for index, spread in enumerate(spreads)
            if spread
        }
    )
    # Holm's factor for the next cell that would differ
    factor = sum(p >= SIGNIFICANCE_LEVEL for p in p_differs.values())
    return [
        _judge_measured(cell, rules, spread, p_differs[index], factor)
        if spread
        else _judge_unmeasured(cell, rules, len(cells))
        for index, (cell, spread) in enumerate(zip(cells, spreads, strict=True))
    ]


def describe_verdict(judged: CellVerdict) -> str:
    """Return a verdict and its reasons in sentences."""
    return " ".join([*_verdict_sentences(judged), *describe_excluded(judged.cell)])


def describe_excluded(cell: Cell) -> list[str]:
    """Return sentences about the seeds that do not count, none if all of them do."""
    if not cell.excluded:
        return []
    return [
        f"Left out: {', '.join(cell.excluded)}.",
        "A cell counts as reproduced only if no seed is left out.",
    ]


def _verdict_sentences(judged: CellVerdict) -> list[str]:
    cell = judged.cell
    if judged.interval is None or judged.spread is None:
        return [_describe_unmeasured(cell, judged.verdict)]
    low, high = (format_percent(end, signed=True) for end in judged.interval)
    seeds = (
        "one seed" if cell.sd is None else f"{cell.seeds} seeds, standard deviation {cell.sd:.2f}"
    )
    source = "from the prior" if judged.spread.from_prior else "from the seeds and the prior"
    sentences = [
        f"{judged.verdict}: {format_percent(cell.measured)} measured ({seeds}), "
        f"{cell.published} published.",
        f"The 95 % interval of the difference is [{low}, {high}]; the margin is ±{cell.margin:g}.",
        f"Assumed standard deviation between seeds: {judged.spread.sd:.2f} ({source}).",
        f"p-value of equivalence {judged.p_equivalent:.2g}, of a difference beyond the margin "
        f"{judged.p_differs:.2g}.",
    ]
    if judged.verdict is Verdict.UNDERPOWERED:
        sentences.append(
            "No number of further seeds would resolve it"
            + ("." if cell.excluded else ", because the published value rests on one seed.")
            if judged.further_seeds is None
            else f"{pluralize(judged.further_seeds, 'further seed')} would resolve it."
        )
    if judged.binomial is not None:
        sentences.append(f"Binomial error of the test images alone: ±{judged.binomial:.1f}.")
    return sentences


def _describe_unmeasured(cell: Cell, verdict: Verdict) -> str:
    if verdict is Verdict.PARTIAL:
        return f"partial: run {cell.run} has not finished its last epoch."
    return f"missing: run {cell.run} has no value; {cell.published} published."


def _judge_unmeasured(cell: Cell, rules: Reproduction, cells: int) -> CellVerdict:
    verdict = Verdict.PARTIAL if cell.started else Verdict.MISSING
    further = _further_seeds(cell, rules, Spread(rules.prior.sd, rules.prior.freedom, 0), cells)
    return CellVerdict(cell, verdict, further_seeds=further)


def _judge_measured(
    cell: Cell, rules: Reproduction, spread: Spread, p_differs: float, factor: int
) -> CellVerdict:
    p_equivalent = _p_equivalent(cell, rules, spread)
    low, high = interval = _interval(cell, rules, spread)
    beyond = low > cell.margin or high < -cell.margin  # stricter than the one-sided p of one cell
    verdict, further = Verdict.UNDERPOWERED, None
    if p_equivalent < SIGNIFICANCE_LEVEL and not cell.excluded:
        verdict = Verdict.REPRODUCED
    elif p_differs < SIGNIFICANCE_LEVEL and beyond:
        verdict = Verdict.DIFFERS
    else:
        further = _further_seeds(cell, rules, spread, factor)
    return CellVerdict(cell, verdict, spread, interval, p_equivalent, p_differs, further)


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """Return p-values corrected for multiple testing, by the same keys. Source: S. Holm (1979)."""
    corrected, largest = {}, 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[key]))
        corrected[key] = largest
    return corrected


def _pooled_spread(cell: Cell, rules: Reproduction) -> Spread:
    """Return the seeds' variance and the prior's, weighted by their degrees of freedom."""
    prior, own = rules.prior.freedom, len(cell.values) - 1
    variance = prior * rules.prior.sd**2
    if cell.sd is not None:
        variance += own * cell.sd**2
    return Spread(sqrt(variance / (prior + own)), prior + own, own + 1)


def _interval(cell: Cell, rules: Reproduction, spread: Spread) -> tuple[float, float]:
    from scipy.special import stdtrit

    error = spread.sd * sqrt(1 + 1 / cell.seeds)
    quantile = float(stdtrit(spread.freedom, 1 - SIGNIFICANCE_LEVEL / 2))
    half = quantile * error + rules.rounding
    return _difference(cell) - half, _difference(cell) + half


def _p_equivalent(cell: Cell, rules: Reproduction, spread: Spread) -> float:
    """Return the larger p of the one-sided tests against either end of the margin."""
    distance = cell.margin - rules.rounding - abs(_difference(cell))
    return float(_tail_probability(distance, spread, cell.seeds, spread.freedom))


def _p_differs(cell: Cell, rules: Reproduction, spread: Spread) -> float:
    """Return the p of the one-sided test against the nearest end of the margin."""
    distance = abs(_difference(cell)) - rules.rounding - cell.margin
    return float(_tail_probability(distance, spread, cell.seeds, spread.freedom))


def _further_seeds(cell: Cell, rules: Reproduction, spread: Spread, factor: int) -> int | None:
    """Return the fewest further seeds that resolve the cell, with Holm's factor.

    The factor is at least 2, because a cell differs only if its two-sided 95% interval lies beyond
    the margin: its one-sided p is then below half the significance level.
    """
    import numpy as np

    seeds = np.arange(cell.seeds + 1, MAX_SEEDS + 1)
    freedom = rules.prior.freedom + seeds - 1
    difference = abs(_difference(cell)) if cell.values else 0.0
    inside = cell.margin - rules.rounding - difference
    beyond = difference - rules.rounding - cell.margin
    equivalent = _tail_probability(inside, spread, seeds, freedom) < SIGNIFICANCE_LEVEL
    p_differs = max(factor, 2) * _tail_probability(beyond, spread, seeds, freedom)
    reproduced = equivalent & (not cell.excluded)
    resolved = seeds[reproduced | (p_differs < SIGNIFICANCE_LEVEL)]
    return int(resolved[0]) - cell.seeds if len(resolved) else None


def _tail_probability(distance: float, spread: Spread, seeds: Any, freedom: Any) -> Any:
    """Return the probability of a mean at least so far on one side; `seeds` may be an array."""
    from scipy.special import stdtr

    return stdtr(freedom, -distance / (spread.sd * (1 + 1 / seeds) ** 0.5))


def _difference(cell: Cell) -> float:
    return fmean(cell.values) - cell.published
