"""The tests of each relation that a claim can state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from aol.certification.certificate import TOLERANCE
from orchestrator.analysis.claims.contrasts import Contrasts, SeedContrasts, Step
from orchestrator.analysis.claims.costs import cost_steps
from orchestrator.analysis.claims.measurements import Basis, Comparisons, NotComparableError
from orchestrator.errors import RecordError
from orchestrator.spec.claims import Above, Bound, Cheaper, Claim, Extreme, Moves, Trend
from orchestrator.spec.costs import read_costs
from orchestrator.spec.fields import LAYER_NORM

Outcome = tuple[Sequence[Step], float, float]  # steps, p-values of holding and of the opposite
Name = Callable[[int, int, str], str]  # of a step: the higher run, the lower one, the column


class Source(Protocol):
    """The values of runs, to be compared in groups."""

    @property
    def titles(self) -> tuple[str, ...]:
        """Return the titles of the file's columns."""
        ...

    @property
    def tests_trends(self) -> bool:
        """Return whether a trend is tested as a whole."""
        ...

    def contrasts(
        self, groups: Sequence[Sequence[int]], column: str, minus: str | None = None
    ) -> list[Contrasts]:
        """Return the contrasts of each group in a column. Raises: NotComparableError."""
        ...


@dataclass(frozen=True)
class Assessment:
    """The steps of a claim and the p-values of its two decisions.

    `p_holds` and `p_opposite` are None where nothing is random. `highest` is the probability that
    the claimed run is the highest, for a claim about an extreme. If a benchmark is the evidence,
    `setting` says what it measured, and `seeds` is the number of its rounds. `at` gives the
    p-values if so many seeds had the same means and the same spread.
    """

    basis: Basis
    seeds: int
    steps: tuple[Step, ...]
    p_holds: float | None
    p_opposite: float | None
    highest: float | None = None
    setting: str = ""
    at: Callable[[int], tuple[float, float]] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ClaimTest:
    """The contrasts of a claim, and the function that tests them."""

    contrasts: tuple[Contrasts, ...]
    evaluate: Callable[[Sequence[Contrasts]], Outcome]
    highest: Callable[[], float] | None = None

    def assessment(self, basis: Basis) -> Assessment:
        """Return the evidence."""
        steps, p_holds, p_opposite = self.evaluate(self.contrasts)
        seeds = min(each.seeds for each in self.contrasts)

        def at(more: int) -> tuple[float, float]:
            scaled = [
                each.with_seeds(more) for each in self.contrasts if isinstance(each, SeedContrasts)
            ]
            return self.evaluate(scaled)[1:]

        return Assessment(
            basis,
            seeds,
            tuple(steps),
            p_holds,
            p_opposite,
            self.highest() if self.highest else None,
            at=at if basis is Basis.SEEDS else None,
        )


def claim_test(claim: Claim, source: Source, labels: Mapping[int, str]) -> ClaimTest | None:
    """Return the test of a claim, None if it is not about differences between runs.

    Raises: NotComparableError if the source lacks a value, RecordError, StoreError.
    """

    def name(higher: int, lower: int, column: str) -> str:
        return f"{labels[higher]} over {labels[lower]}, {column}"

    match claim.relation:
        case Trend() as trend:
            return _trend_test(trend, claim.kind, source, name)
        case Extreme() as extreme:
            return _extreme_test(extreme, claim.kind, source, name)
        case Above() as above:
            return _above_test(above, claim.columns_among(source.titles), source, name)
        case Moves() as moves:
            return _moves_test(moves, source, name)
        case _:
            return None


def _all_steps(steps: Sequence[Step]) -> Outcome:
    """Return the outcome of steps that all have to be positive.

    All are, if each test rejects (an intersection-union test); one is not, by Bonferroni's method.
    """
    p_holds = max(step.p_holds for step in steps)
    return steps, p_holds, min(1.0, len(steps) * min(step.p_opposite for step in steps))


def _trend_test(trend: Trend, kind: str, source: Source, name: Name) -> ClaimTest:
    rising = trend.runs if kind == "increases" else trend.runs[::-1]
    found = source.contrasts([rising], trend.column, trend.minus)
    column = trend.column if trend.minus is None else f"{trend.column} minus {trend.minus}"

    def evaluate(contrasts: Sequence[Contrasts]) -> Outcome:
        (only,) = contrasts
        steps = [only.step(name(high, low, column), high, low) for low, high in pairwise(rising)]
        _, p_holds, p_opposite = _all_steps(steps)
        if source.tests_trends and isinstance(only, SeedContrasts):
            in_order = all(step.difference > 0 for step in steps)
            p_holds = only.trend_p(rising) if in_order else 1.0
        return steps, p_holds, p_opposite

    return ClaimTest(tuple(found), evaluate)


def _extreme_test(extreme: Extreme, kind: str, source: Source, name: Name) -> ClaimTest:
    found = source.contrasts([extreme.runs], extreme.column)
    others = [run for run in extreme.runs if run != extreme.run]
    pairs = [(extreme.run, other) for other in others]
    if kind == "lowest":
        pairs = [(other, extreme.run) for other in others]

    def evaluate(contrasts: Sequence[Contrasts]) -> Outcome:
        (only,) = contrasts
        return _all_steps([only.step(name(*pair, extreme.column), *pair) for pair in pairs])

    sign = 1 if kind == "highest" else -1
    return ClaimTest(
        tuple(found), evaluate, partial(found[0].highest_probability, extreme.run, sign)
    )


def _above_test(above: Above, columns: Sequence[str], source: Source, name: Name) -> ClaimTest:
    found, pairs = [], []
    for column in columns:
        contrasts = source.contrasts(above.orders, column)
        for order, contrast in zip(above.orders, contrasts, strict=True):
            for pair in pairwise(order):
                found.append(contrast)
                pairs.append((name(*pair, column), *pair))

    def evaluate(contrasts: Sequence[Contrasts]) -> Outcome:
        return _all_steps([each.step(*pair) for each, pair in zip(contrasts, pairs, strict=True)])

    return ClaimTest(tuple(found), evaluate)


def _moves_test(moves: Moves, source: Source, name: Name) -> ClaimTest:
    found = [one for column in moves.best for one in source.contrasts([moves.runs], column)]

    def evaluate(contrasts: Sequence[Contrasts]) -> Outcome:
        outcomes = [
            _best_of(each, best, [run for run in moves.runs if run not in best], column, name)
            for each, (column, best) in zip(contrasts, moves.best.items(), strict=True)
        ]
        return (
            [step for step, _, _ in outcomes],
            max(p_holds for _, p_holds, _ in outcomes),
            min(1.0, len(outcomes) * min(p_opposite for _, _, p_opposite in outcomes)),
        )

    return ClaimTest(tuple(found), evaluate)


def _best_of(
    contrasts: Contrasts, best: Sequence[int], others: Sequence[int], column: str, name: Name
) -> tuple[Step, float, float]:
    """Return the test that one of `best` is above all others: its hardest step and p-values."""

    def step(run: int, other: int) -> Step:
        return contrasts.step(name(run, other, column), run, other)

    hardest = [max((step(run, other) for other in others), key=support) for run in best]
    strongest = min(hardest, key=support)
    p_opposite = min(max(step(run, other).p_opposite for run in best) for other in others)
    return (
        strongest,
        min(1.0, len(best) * strongest.p_holds),
        min(1.0, len(others) * p_opposite),
    )


def support(step: Step) -> tuple[float, float]:
    """Return a key that is larger the less a step is supported."""
    return step.p_holds, -step.difference


def assess_bound(
    bound: Bound, kind: str, comparisons: Comparisons, labels: Mapping[int, str]
) -> Assessment:
    """Return the evidence for a bound: a step per measured run, its seed nearest to the bound.

    A layer norm may exceed a bound by the tolerance of the certificate.
    """
    sign = 1.0 if kind == "at_least" else -1.0
    tolerance = TOLERANCE if bound.column == LAYER_NORM else 0.0
    steps = []
    for run, seeds in comparisons.seeds.items():
        if not seeds:
            continue
        values = comparisons.measured.values(run, bound.column).values()
        distance = min(sign * (value - bound.value) for value in values)
        p_holds = 0.0 if distance >= -tolerance else 1.0
        name = f"{labels[run]}, {bound.column}"
        steps.append(Step(name, distance, (distance, distance), p_holds, 1 - p_holds))
    fewest = min(map(len, comparisons.seeds.values()))
    return Assessment(Basis.VALUES, fewest, tuple(steps), None, None)


def assess_costs(relation: Cheaper, folder: Path) -> Assessment:
    """Return the evidence in the file of a benchmark.

    Raises: NotComparableError if there is no such file, RecordError if it is damaged or lacks a
    method.
    """
    file = folder / relation.costs
    if not file.exists():
        raise NotComparableError(f"There is no file {relation.costs} of the benchmark.")
    record = read_costs(file)
    try:
        steps = cost_steps(relation, record)
    except KeyError as error:
        known = ", ".join(record.methods)
        raise RecordError(f"{file}: has no method {error}, only {known}") from error
    except ValueError as error:
        raise RecordError(f"{file}: the methods have different numbers of values") from error
    rounds = len(record.methods[relation.method].step_ms)
    _, p_holds, p_opposite = _all_steps(steps)
    return Assessment(
        Basis.ROUNDS, rounds, tuple(steps), p_holds, p_opposite, setting=record.setting
    )
