"""Whether what was measured reproduces what was published, cell by cell; `docs/verdicts.md`.

The paper trained every run once, so a published value is one draw, as ours are. The difference of
our mean of n seeds from it has the variance sd**2 * (1 + 1/n), and the published value is known
to half a unit of its last printed decimal only. The spread sd is the seeds' own, pooled with a
stated prior that counts as so many further degrees of freedom: with one seed it is the prior.
All values are percentage points.
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

LEVEL = 0.05
MOST_SEEDS = 100  # a cell that needs more will not be settled


class Verdict(StrEnum):
    """What can be said of a cell."""

    REPRODUCED = "reproduced"
    DIFFERS = "differs"
    UNDERPOWERED = "underpowered"
    PARTIAL = "partial"
    MISSING = "missing"


@dataclass(frozen=True)
class Spread:
    """The standard deviation between seeds, how sure it is, and where it is from."""

    sd: float
    freedom: float
    seeds: int  # that it was estimated from, beside the prior

    @property
    def from_prior(self) -> bool:
        """Whether there is nothing of our own in it."""
        return self.seeds < 2


@dataclass(frozen=True)
class CellVerdict:
    """A cell with its verdict and what it rests on; None where nothing was measured.

    `interval` holds the true difference with 95% confidence; a cell that differs has all of it
    beyond the margin, one that is reproduced its 90% interval within. `p_equivalent` is that of
    the two one-sided tests, `p_differs` of a difference beyond the margin, corrected by Holm for
    all cells judged with it. `further_seeds` would settle an undecided cell if mean, spread and
    the other cells stayed as they are, one without a value if it were the published one; None if
    no number up to `MOST_SEEDS` would.
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
        """Half the 95% interval of a share of the test images by itself; see `docs/verdicts.md`.

        None also of what is no share, as a damaged store may hold.
        """
        if self.cell.measured is None or not 0 <= self.cell.measured <= 100:
            return None
        from statsmodels.stats.proportion import proportion_confint

        count = round(self.cell.measured / 100 * self.cell.images)
        low, high = proportion_confint(count, self.cell.images, alpha=LEVEL, method="wilson")
        return float(50 * (high - low))


def judge_cells(cells: Sequence[Cell], rules: Reproduction) -> list[CellVerdict]:
    """The verdict of every cell; Holm's correction is over those that have a value."""
    spreads = [_spread(cell, rules) if cell.values else None for cell in cells]
    raw = {
        place: _p_differs(cells[place], rules, spread)
        for place, spread in enumerate(spreads)
        if spread
    }
    p_differs = _holm(raw)
    factor = sum(p >= LEVEL for p in p_differs.values())  # of the next cell that would differ
    return [
        _judged(cell, rules, spread, p_differs[place], factor)
        if spread
        else _unmeasured(cell, rules, len(cells))
        for place, (cell, spread) in enumerate(zip(cells, spreads, strict=True))
    ]


def describe_verdict(judged: CellVerdict) -> str:
    """A verdict and what it rests on, as sentences."""
    cell = judged.cell
    if judged.interval is None or judged.spread is None:
        return _not_measured(cell, judged.verdict)
    low, high = (format_percent(end, signed=True) for end in judged.interval)
    seeds = (
        "one seed" if cell.sd is None else f"{cell.seeds} seeds, standard deviation {cell.sd:.2f}"
    )
    source = "from the prior" if judged.spread.from_prior else "from the seeds and the prior"
    said = [
        f"{judged.verdict}: {format_percent(cell.measured)} measured ({seeds}), "
        f"{cell.published} published.",
        f"The difference is between {low} and {high} (95 %); the margin is ±{cell.margin:g}.",
        f"Assumed standard deviation between seeds: {judged.spread.sd:.2f} ({source}).",
        f"p of equivalence {judged.p_equivalent:.2g}, of a difference {judged.p_differs:.2g}.",
    ]
    if judged.verdict is Verdict.UNDERPOWERED:
        said.append(
            "No number of seeds settles it: the paper's single one leaves too much open."
            if judged.further_seeds is None
            else f"{pluralize(judged.further_seeds, 'further seed')} would settle it."
        )
    if judged.binomial is not None:
        said.append(f"Binomial error of the test images alone: ±{judged.binomial:.1f}.")
    return " ".join(said)


def _not_measured(cell: Cell, verdict: Verdict) -> str:
    if verdict is Verdict.PARTIAL:
        return f"partial: run {cell.run} is not trained to its last epoch."
    why = f": it {' or '.join(cell.given_up)}" if cell.given_up else ""
    return f"missing: run {cell.run} has no value{why}; {cell.published} published."


def _unmeasured(cell: Cell, rules: Reproduction, cells: int) -> CellVerdict:
    verdict = Verdict.PARTIAL if cell.started else Verdict.MISSING
    further = _further_seeds(cell, rules, Spread(rules.prior.sd, rules.prior.freedom, 0), cells)
    return CellVerdict(cell, verdict, further_seeds=further)


def _holm(raw: Mapping[int, float]) -> dict[int, float]:
    """Each p-value so much larger that one wrong rejection among all is as rare as the level.

    Source: S. Holm (1979). Statsmodels has it too, and takes a second to be imported.
    """
    corrected, largest = {}, 0.0
    for rank, place in enumerate(sorted(raw, key=lambda place: raw[place])):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[place]))
        corrected[place] = largest
    return corrected


def _judged(
    cell: Cell, rules: Reproduction, spread: Spread, p_differs: float, factor: int
) -> CellVerdict:
    p_equivalent = _p_equivalent(cell, rules, spread)
    low, high = interval = _interval(cell, rules, spread)
    outside = low > cell.margin or high < -cell.margin  # tested on one side, p alone is less strict
    verdict, further = Verdict.UNDERPOWERED, None
    if p_equivalent < LEVEL:
        verdict = Verdict.REPRODUCED
    elif p_differs < LEVEL and outside:
        verdict = Verdict.DIFFERS
    else:
        further = _further_seeds(cell, rules, spread, factor)
    return CellVerdict(cell, verdict, spread, interval, p_equivalent, p_differs, further)


def _spread(cell: Cell, rules: Reproduction) -> Spread:
    """The seeds' variance and the prior's, weighted by their degrees of freedom."""
    prior, own = rules.prior.freedom, len(cell.values) - 1
    variance = prior * rules.prior.sd**2
    if cell.sd is not None:
        variance += own * cell.sd**2
    return Spread(sqrt(variance / (prior + own)), prior + own, own + 1)


def _interval(cell: Cell, rules: Reproduction, spread: Spread) -> tuple[float, float]:
    from scipy.special import stdtrit

    error = spread.sd * sqrt(1 + 1 / cell.seeds)
    half = float(stdtrit(spread.freedom, 1 - LEVEL / 2)) * error + rules.rounding
    return _difference(cell) - half, _difference(cell) + half


def _p_equivalent(cell: Cell, rules: Reproduction, spread: Spread) -> float:
    """Two one-sided tests: the larger p of a difference at or beyond either end of the margin."""
    distance = cell.margin - rules.rounding - abs(_difference(cell))
    return float(_tail(distance, spread, cell.seeds, spread.freedom))


def _p_differs(cell: Cell, rules: Reproduction, spread: Spread) -> float:
    """Against a difference within the margin, at the end of it that is nearest."""
    distance = abs(_difference(cell)) - rules.rounding - cell.margin
    return float(_tail(distance, spread, cell.seeds, spread.freedom))


def _further_seeds(cell: Cell, rules: Reproduction, spread: Spread, factor: int) -> int | None:
    """The fewest, with mean and spread as they are, and Holm's factor.

    Two at least: the interval is outside the margin where a one-sided p is below half the level.
    """
    import numpy as np

    seeds = np.arange(cell.seeds + 1, MOST_SEEDS + 1)
    freedom = rules.prior.freedom + seeds - 1
    difference = abs(_difference(cell)) if cell.values else 0.0
    inside = cell.margin - rules.rounding - difference
    outside = difference - rules.rounding - cell.margin
    equivalent = _tail(inside, spread, seeds, freedom) < LEVEL
    differs = max(factor, 2) * _tail(outside, spread, seeds, freedom) < LEVEL
    settled = seeds[equivalent | differs]
    return int(settled[0]) - cell.seeds if len(settled) else None


def _tail(distance: float, spread: Spread, seeds: Any, freedom: Any) -> Any:
    """The chance of a mean so far, or further, on that side; for a number of seeds or many."""
    from scipy.special import stdtr

    return stdtr(freedom, -distance / (spread.sd * (1 + 1 / seeds) ** 0.5))


def _difference(cell: Cell) -> float:
    return fmean(cell.values) - cell.published
