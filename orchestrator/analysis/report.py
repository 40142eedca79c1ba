"""The report of a profile: claims, tables, a verdict per cell and violated invariants."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.analysis.claims import (
    JudgedClaim,
    claimed_radii,
    judge_claims,
    summarize_claims,
)
from orchestrator.analysis.invariants import find_violations
from orchestrator.analysis.margins import MarginReader
from orchestrator.analysis.tables import Cell, FilledTable, fill_tables
from orchestrator.analysis.verdicts import CellVerdict, Verdict, judge_cells
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store

# The fields of a cell's record that compare it with the published value
COMPARING = (
    "difference",
    "verdict",
    "margin",
    "interval_low",
    "interval_high",
    "spread",
    "spread_from_prior",
    "p_equivalent",
    "p_differs",
    "further_seeds",
)


@dataclass(frozen=True)
class Report:
    """The results of a profile.

    If the profile is not comparable with the paper, only the claims are judged: its cells have no
    verdicts.
    """

    experiment: Experiment
    tables: tuple[FilledTable, ...]
    violations: tuple[str, ...]  # a line per violated invariant
    claims: tuple[JudgedClaim, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """Return the cells of all tables."""
        return [cell for filled in self.tables for row in filled.cells for cell in row]

    @property
    def unsound(self) -> list[str]:
        """Return a line per run that is left out because its network is unsound."""
        return sorted({line for filled in self.tables for line in filled.unsound})

    @property
    def diverged(self) -> list[str]:
        """Return a line per run that is left out because its loss or scores were not finite."""
        return sorted({line for filled in self.tables for line in filled.diverged})

    @cached_property
    def verdicts(self) -> Mapping[Cell, CellVerdict]:
        """Return the verdict of every cell."""
        judged = judge_cells(self.cells, self.experiment.reproduction)
        return {verdict.cell: verdict for verdict in judged}

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """Return the number of cells with each verdict; none if they are not compared."""
        if not self.experiment.comparable:
            return Counter()
        return Counter(self.verdicts[cell].verdict for cell in self.cells)


def make_report(experiment: Experiment, store: Store) -> Report:
    """Return the report of a profile from the store.

    Damaged margins are violations, and claims that need them are not measured. Raises: StoreError.
    """
    margins = MarginReader(store, claimed_radii(experiment))
    return Report(
        experiment,
        tuple(fill_tables(experiment, store)),
        tuple(find_violations(experiment, store, margins)),
        tuple(judge_claims(experiment, store, margins)),
    )


def summarize(report: Report) -> str:
    """Return the results as a paragraph that can be quoted."""
    sentences = [summarize_claims(report.claims)] if report.claims else []
    sentences += _summarize_cells(report) if report.experiment.comparable else []
    seeds = sorted({cell.seeds for cell in report.cells if cell.seeds})
    if seeds:
        fewest = f"{seeds[0]} to " if len(seeds) > 1 else ""
        published = "; the published values have one" if report.experiment.comparable else ""
        sentences.append(
            f"Values are those of the last epoch on all test images, with {fewest}"
            f"{pluralize(seeds[-1], 'seed')} per cell{published}."
        )
    if report.unsound:
        sentences.append(f"Left out as unsound: {len(report.unsound)} of the runs.")
    if report.diverged:
        sentences.append(f"Left out as diverged: {len(report.diverged)} of the runs.")
    if report.violations:
        sentences.insert(
            0, f"(Violated invariants: {len(report.violations)}, so this is no claim.)"
        )
    if report.experiment.note and report.experiment.comparable:
        note = f"({report.experiment.note}; as a claim about the paper this would read:)"
        sentences.insert(0, note)
    return " ".join(sentences)


def _summarize_cells(report: Report) -> list[str]:
    """Return sentences about the verdicts of the cells."""
    counts, cells = report.counts, report.cells
    experiment, rules = report.experiment, report.experiment.reproduction
    margins = sorted({cell.margin for cell in cells} or {rules.margin})
    last = pluralize(margins[-1], "percentage point")
    within = " or ".join([*(f"{margin:g}" for margin in margins[:-1]), last])
    sentences = [
        f"We reproduced {counts[Verdict.REPRODUCED]} of the "
        f"{pluralize(len(cells), 'published cell')} of "
        f"{experiment.source or 'the paper'}: there, two one-sided tests at 5% show the true "
        f"difference to be within {within} of the published value."
    ]
    if counts[Verdict.DIFFERS]:
        sentences.append(
            f"{pluralize(counts[Verdict.DIFFERS], 'differs', 'differ')} by more than that (5%, "
            "Holm's correction over all measured cells)."
        )
    if counts[Verdict.UNDERPOWERED]:
        undecided = pluralize(counts[Verdict.UNDERPOWERED], "is", "are")
        sentences.append(f"{undecided} undecided with the seeds there are.")
    if unmeasured := counts[Verdict.PARTIAL] + counts[Verdict.MISSING]:
        sentences.append(f"{pluralize(unmeasured, 'has', 'have')} no value.")
    return sentences


def as_records(report: Report) -> list[dict[str, Any]]:
    """Return a record per cell."""
    comparable = report.experiment.comparable
    return [as_record(report.verdicts[cell], comparable=comparable) for cell in report.cells]


def as_record(judged: CellVerdict, *, comparable: bool) -> dict[str, Any]:
    """Return a cell and its verdict as plain values; None where nothing was measured.

    Of a profile that is not comparable with the paper, all that compares them is None too.
    """
    cell = judged.cell
    low, high = judged.interval or (None, None)
    record = {
        "table": cell.table,
        "row": cell.row,
        "run_id": cell.run,
        "column": cell.column,
        "metric": cell.metric,
        "published": cell.published,
        "measured": cell.measured,
        "difference": cell.difference,
        "seeds": cell.seeds,
        "excluded": ", ".join(cell.excluded) or None,
        "sd": cell.sd,
        "verdict": str(judged.verdict),
        "margin": cell.margin,
        "interval_low": low,
        "interval_high": high,
        "spread": judged.spread.sd if judged.spread else None,
        "spread_from_prior": judged.spread.from_prior if judged.spread else None,
        "p_equivalent": judged.p_equivalent,
        "p_differs": judged.p_differs,
        "further_seeds": judged.further_seeds,
        "binomial": judged.binomial,
    }
    return record if comparable else record | dict.fromkeys(COMPARING)
