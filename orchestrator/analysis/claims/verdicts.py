"""Judge the claims of a paper by the runs that were trained; see `docs/claims.md`.

A claim consists of steps: differences that have to be positive. It holds if the test of all its
steps together rejects the opposite, and is contradicted if one step is negative. Both decisions are
corrected by Holm's method over all claims that rest on a test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.analysis.claims.contrasts import Step
from orchestrator.analysis.claims.measurements import (
    Basis,
    Comparisons,
    Measurements,
    PublishedComparisons,
)
from orchestrator.analysis.claims.relations import (
    Assessment,
    assess_bound,
    assess_costs,
    claim_test,
    support,
)
from orchestrator.analysis.tables import finished_runs
from orchestrator.analysis.verdicts import MAX_SEEDS, SIGNIFICANCE_LEVEL, holm
from orchestrator.formatting import pluralize
from orchestrator.spec.claims import Bound, Cheaper, Claim
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store

EPOCHS_SHOWN = 40  # of a training, at most


class ClaimVerdict(StrEnum):
    """The outcome of testing a claim."""

    HOLDS = "holds"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict and the evidence.

    `p` is the two-sided p-value after Holm's correction. `further_seeds` is the number of seeds
    that would decide an undecided claim if means and spread stayed as they are; None if no number
    up to `MAX_SEEDS` would, or if the spread is not known yet. `unmeasured` are the runs that have
    no value yet. `published` says whether the paper's own numbers support the claim.
    """

    claim: Claim
    verdict: ClaimVerdict
    assessment: Assessment | None = None
    p: float | None = None
    further_seeds: int | None = None
    unmeasured: tuple[int, ...] = ()
    published: str = ""

    @property
    def seeds_to_train(self) -> int:
        """Return the number of further seeds to train, 0 if no number would decide the claim.

        With one seed it is 1: a second one shows the spread between seeds.
        """
        if self.assessment and self.assessment.basis is Basis.IMAGES:
            return 1
        return self.further_seeds or 0

    @property
    def judged_by_seeds(self) -> bool:
        """Return whether its evidence is the spread between seeds."""
        return self.assessment is not None and self.assessment.basis is Basis.SEEDS

    @property
    def weakest(self) -> Step | None:
        """Return the step with the least support, which decides the verdict."""
        if not self.assessment:
            return None
        return max(self.assessment.steps, key=support)


def judge_claims(
    experiment: Experiment, store: Store, *, epoch: int | None = None
) -> list[JudgedClaim]:
    """Return the verdict of every claim of the file, for the finished runs of a profile.

    They are judged by their last epoch, or by `epoch`, counted from 1.

    Raises: StoreError, RecordError if margins or the file of a benchmark are damaged.
    """
    measured = Measurements(experiment, store, epoch)
    published = PublishedComparisons(experiment)
    labels = run_labels(experiment)
    assessed = [_assess(claim, measured, labels) for claim in experiment.claims]
    tested = {
        index: min(1.0, 2 * min(found.p_holds, found.p_opposite))
        for index, (found, _) in enumerate(assessed)
        if found and found.p_holds is not None and found.p_opposite is not None
    }
    p_values = holm(tested)
    # Holm's factor for the next claim that would be decided
    factor = max(1, sum(p >= SIGNIFICANCE_LEVEL for p in p_values.values()))
    return [
        replace(
            _judge(claim, found, unmeasured, p_values.get(index), factor),
            published=describe_published(claim, published, labels),
        )
        for index, (claim, (found, unmeasured)) in enumerate(
            zip(experiment.claims, assessed, strict=True)
        )
    ]


def _judge(
    claim: Claim,
    found: Assessment | None,
    unmeasured: tuple[int, ...],
    p: float | None,
    factor: int,
) -> JudgedClaim:
    if found is None:
        return JudgedClaim(claim, ClaimVerdict.NOT_MEASURED, unmeasured=unmeasured)
    if found.p_holds is None or found.p_opposite is None or p is None:
        holds = all(step.difference >= 0 for step in found.steps)
        verdict = ClaimVerdict.HOLDS if holds else ClaimVerdict.CONTRADICTED
        return JudgedClaim(claim, verdict, found)
    if p < SIGNIFICANCE_LEVEL:
        holds = found.p_holds < found.p_opposite
        verdict = ClaimVerdict.HOLDS if holds else ClaimVerdict.CONTRADICTED
        return JudgedClaim(claim, verdict, found, p)
    further = _further_seeds(found, factor)
    return JudgedClaim(claim, ClaimVerdict.UNDECIDED, found, p, further)


def _further_seeds(found: Assessment, factor: int) -> int | None:
    """Return the fewest further seeds that decide the claim, with Holm's factor."""
    if found.at is None:
        return None
    for seeds in range(found.seeds + 1, MAX_SEEDS + 1):
        if 2 * factor * min(found.at(seeds)) < SIGNIFICANCE_LEVEL:
            return seeds - found.seeds
    return None


def _assess(
    claim: Claim, measured: Measurements, labels: Mapping[int, str]
) -> tuple[Assessment | None, tuple[int, ...]]:
    """Return the evidence for a claim, None if a value is missing; and the runs without values."""
    if isinstance(claim.relation, Cheaper):
        return assess_costs(claim.relation, measured.experiment.path.parent), ()
    comparisons = Comparisons(measured, claim)
    if comparisons.unmeasured:
        return None, comparisons.unmeasured
    if isinstance(claim.relation, Bound):
        return assess_bound(claim.relation, claim.kind, comparisons, labels), ()
    tests = claim_test(claim, comparisons, labels)
    if tests is None:
        return None, ()
    return tests.assessment(comparisons.basis, comparisons.least_seeds), ()


def run_labels(experiment: Experiment) -> dict[int, str]:
    """Return a label per run: that of its first row in a table, or its name, and its ID."""
    labels = {run.id: run.name for run in experiment.runs}
    for table in reversed(experiment.tables):
        labels |= {row.run: row.label for row in table.rows}
    return {run: f"{label} (run {run})" for run, label in labels.items()}


def describe_published(
    claim: Claim, published: PublishedComparisons, labels: Mapping[int, str]
) -> str:
    """Return whether the paper's own numbers support a claim, empty if it published none."""
    tests = claim_test(claim, published, labels)
    if tests is None:
        return ""
    steps, _, _ = tests.evaluate(tests.contrasts)
    beyond = sum(step.p_holds < SIGNIFICANCE_LEVEL for step in steps)
    spread = "by more than its own spread between replicates"
    if all(step.difference > 0 for step in steps):
        if beyond == len(steps):
            return f"holds in the paper, {spread}"
        return f"holds in the paper; {spread} in {beyond} of {pluralize(len(steps), 'step')}"
    if any(step.p_opposite < SIGNIFICANCE_LEVEL for step in steps):
        return "contradicted by the paper's own numbers"
    return f"not decided by the paper itself: {spread} in {beyond} of {len(steps)} steps only"


def judge_by_epoch(experiment: Experiment, store: Store) -> dict[int, list[JudgedClaim]]:
    """Return the verdicts after each epoch in which a claim can be judged by its seeds.

    Of a long training, they are `EPOCHS_SHOWN` epochs at even distances. A claim about something
    that is measured after the last epoch only is never measured here. Raises: StoreError.
    """
    one_per_run = {run.run_id: run.key for run in finished_runs(experiment, store)}
    evaluated = {
        epoch
        for key in one_per_run.values()
        for epoch, values in store.metrics(key).items()
        if "accuracy" in values
    }
    every = max(1, -(-len(evaluated) // EPOCHS_SHOWN))
    epochs = sorted(evaluated, reverse=True)[::every][::-1]
    judged = {epoch: judge_claims(experiment, store, epoch=epoch) for epoch in epochs}
    return {
        epoch: claims
        for epoch, claims in judged.items()
        if any(one.judged_by_seeds for one in claims)
    }
