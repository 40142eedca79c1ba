"""Judge the claims of a paper by the runs that were trained; see `docs/claims.md`.

A claim consists of steps: differences that have to be positive. It holds if the test of all its
steps together rejects the opposite, and is contradicted if one step is negative. Both decisions are
corrected by Holm's method over all claims that rest on a test. It does not hold while a seed of
its runs is left out because it diverged or is unsound: the others are a selection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.analysis.claims.contrasts import Step
from orchestrator.analysis.claims.measurements import (
    Basis,
    Comparisons,
    Measurements,
    NotComparableError,
    PublishedComparisons,
)
from orchestrator.analysis.claims.relations import (
    Assessment,
    assess_bound,
    assess_costs,
    claim_test,
    support,
)
from orchestrator.analysis.margins import MarginReader
from orchestrator.analysis.tables import finished_runs
from orchestrator.analysis.verdicts import MAX_SEEDS, SIGNIFICANCE_LEVEL, holm
from orchestrator.errors import RecordError
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
    no value yet, and `obstacle` is another reason why nothing was measured. `excluded` are the
    seeds that do not count, each with the reason. `published` says whether the paper's own numbers
    support the claim.
    """

    claim: Claim
    verdict: ClaimVerdict
    assessment: Assessment | None = None
    p: float | None = None
    further_seeds: int | None = None
    unmeasured: tuple[int, ...] = ()
    obstacle: str = ""
    excluded: tuple[str, ...] = ()
    published: str = ""

    @property
    def seeds_to_train(self) -> int:
        """Return the number of further seeds to train, 0 if no number would decide the claim.

        With one seed it is 1: a second one shows the spread between seeds.
        """
        if self.assessment is None:
            return 0 if isinstance(self.claim.relation, Cheaper) or self.excluded else 1
        return 1 if self.assessment.basis is Basis.IMAGES else self.further_seeds or 0

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
    experiment: Experiment, store: Store, margins: MarginReader | None = None
) -> list[JudgedClaim]:
    """Return the verdict of every claim of the file, for the finished runs of a profile.

    A claim whose values are damaged is not measured. Raises: StoreError.
    """
    published, labels = PublishedComparisons(experiment), run_labels(experiment)
    return [
        replace(judged, published=describe_published(judged.claim, published, labels))
        for judged in _judge_all(_assess_all(experiment, Measurements(experiment, store, margins)))
    ]


def judge_by_epoch(experiment: Experiment, store: Store) -> dict[int, dict[str, ClaimVerdict]]:
    """Return the verdicts that the claims had after each epoch, by the claims' IDs.

    Only claims that seeds can decide at that epoch have one. Of a long training, they are
    `EPOCHS_SHOWN` epochs at even distances. Holm's correction is over the same claims in each.
    Raises: StoreError.
    """
    measured = Measurements(experiment, store)
    final = _assess_all(experiment, measured)
    one_per_run = {run.run_id: run.key for run in finished_runs(experiment, store)}
    evaluated = store.metric_ranges(one_per_run.values(), ["accuracy"]).get("accuracy", {})
    every = max(1, -(-len(evaluated) // EPOCHS_SHOWN))
    verdicts = {}
    for epoch in sorted(evaluated, reverse=True)[::every][::-1]:
        then = _assess_all(experiment, measured.at_epoch(epoch))
        shown = [item.judged_by_seeds for item in then]
        judged = _judge_all(
            [
                now if by_seeds else last
                for now, last, by_seeds in zip(then, final, shown, strict=True)
            ]
        )
        found = {
            one.claim.id: one.verdict
            for one, by_seeds in zip(judged, shown, strict=True)
            if by_seeds
        }
        if found:
            verdicts[epoch] = found
    return verdicts


def _assess_all(experiment: Experiment, measured: Measurements) -> list[JudgedClaim]:
    """Return every claim with its evidence, not judged yet. Raises: StoreError."""
    labels = run_labels(experiment)
    return [_assess(claim, measured, labels) for claim in experiment.claims]


def _assess(claim: Claim, measured: Measurements, labels: Mapping[int, str]) -> JudgedClaim:
    pending = JudgedClaim(claim, ClaimVerdict.NOT_MEASURED)
    try:
        if isinstance(claim.relation, Cheaper):
            folder = measured.experiment.path.parent
            return replace(pending, assessment=assess_costs(claim.relation, folder))
        comparisons = Comparisons(measured, claim)
        pending = replace(pending, excluded=comparisons.excluded)
        if isinstance(claim.relation, Bound):
            return _assess_bound(pending, claim.relation, comparisons, labels)
        if comparisons.unmeasured:
            return replace(pending, unmeasured=comparisons.unmeasured)
        test = claim_test(claim, comparisons, labels)
        found = test.assessment(comparisons.basis) if test else None
        return replace(pending, assessment=found)
    except (NotComparableError, RecordError) as error:
        return replace(pending, obstacle=str(error))


def _assess_bound(
    pending: JudgedClaim, bound: Bound, comparisons: Comparisons, labels: Mapping[int, str]
) -> JudgedClaim:
    """Return the evidence for a bound; one run beyond it is enough, but not one within it."""
    found = assess_bound(bound, pending.claim.kind, comparisons, labels)
    beyond = any(step.p_opposite == 0 for step in found.steps)
    if comparisons.unmeasured and not beyond:
        return replace(pending, unmeasured=comparisons.unmeasured)
    return replace(pending, assessment=found)


def _judge_all(assessed: Sequence[JudgedClaim]) -> list[JudgedClaim]:
    """Return the claims with their verdicts, with Holm's correction over those that are tested."""
    tested = {
        index: min(1.0, 2 * min(found.p_holds, found.p_opposite))
        for index, found in enumerate(one.assessment for one in assessed)
        if found and found.p_holds is not None and found.p_opposite is not None
    }
    p_values = holm(tested)
    # Holm's factor for the next claim that would be decided
    factor = max(1, sum(p >= SIGNIFICANCE_LEVEL for p in p_values.values()))
    return [_judge(one, p_values.get(index), factor) for index, one in enumerate(assessed)]


def _judge(pending: JudgedClaim, p: float | None, factor: int) -> JudgedClaim:
    found = pending.assessment
    if found is None:
        return pending
    if found.p_holds is None or found.p_opposite is None or p is None:
        supported = all(step.p_holds == 0 for step in found.steps)
        return replace(pending, verdict=_decision(pending, supported=supported))
    if p < SIGNIFICANCE_LEVEL:
        supported = found.p_holds < found.p_opposite
        return replace(pending, verdict=_decision(pending, supported=supported), p=p)
    further = _further_seeds(pending, found, factor)
    return replace(pending, verdict=ClaimVerdict.UNDECIDED, p=p, further_seeds=further)


def _decision(pending: JudgedClaim, *, supported: bool) -> ClaimVerdict:
    """Return the verdict of a claim that the evidence supports or contradicts."""
    if not supported:
        return ClaimVerdict.CONTRADICTED
    return ClaimVerdict.UNDECIDED if pending.excluded else ClaimVerdict.HOLDS


def _further_seeds(pending: JudgedClaim, found: Assessment, factor: int) -> int | None:
    """Return the fewest further seeds that decide the claim, with Holm's factor."""
    if found.at is None:
        return None
    for seeds in range(found.seeds + 1, MAX_SEEDS + 1):
        p_holds, p_opposite = found.at(seeds)
        p_decision = p_opposite if pending.excluded else min(p_holds, p_opposite)
        if 2 * factor * p_decision < SIGNIFICANCE_LEVEL:
            return seeds - found.seeds
    return None


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
    try:
        test = claim_test(claim, published, labels)
    except NotComparableError:
        return ""
    if test is None:
        return ""
    steps, _, p_opposite = test.evaluate(test.contrasts)
    beyond = sum(step.p_holds < SIGNIFICANCE_LEVEL for step in steps)
    spread = "by more than its own spread between replicates"
    if p_opposite < SIGNIFICANCE_LEVEL:
        return "contradicted by the paper's own numbers"
    if beyond == len(steps):
        return f"holds in the paper, {spread}"
    if beyond and all(step.difference > 0 for step in steps):
        return f"holds in the paper; {spread} in {beyond} of {pluralize(len(steps), 'step')}"
    return f"not decided by the paper itself: {spread} in {beyond} of {len(steps)} steps only"
