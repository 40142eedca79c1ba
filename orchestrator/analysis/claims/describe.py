"""Judged claims in sentences and as plain values."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from orchestrator.analysis.claims.contrasts import Step
from orchestrator.analysis.claims.judge import ClaimVerdict, JudgedClaim
from orchestrator.analysis.claims.measurements import Basis
from orchestrator.formatting import format_percent, format_significant, pluralize

VERBS = {
    ClaimVerdict.HOLDS: ("holds", "hold"),
    ClaimVerdict.CONTRADICTED: ("is contradicted", "are contradicted"),
    ClaimVerdict.UNDECIDED: ("is undecided", "are undecided"),
    ClaimVerdict.NOT_MEASURED: ("is not measured", "are not measured"),
}


def summarize_claims(claims: Sequence[JudgedClaim]) -> str:
    """Return how many claims have which verdict, in a sentence."""
    counts = Counter(judged.verdict for judged in claims)
    parts = [
        pluralize(counts[verdict], *VERBS[verdict]) for verdict in ClaimVerdict if counts[verdict]
    ]
    return f"Of {pluralize(len(claims), 'claim')} of the paper, {', '.join(parts)}."


def describe_evidence(judged: JudgedClaim) -> str:
    """Return the evidence for a verdict, and what would decide the claim if it is undecided."""
    sentences = _evidence_sentences(judged)
    if judged.excluded:
        sentences.append(f"Left out: {', '.join(judged.excluded)}.")
        sentences.append("A claim holds only if no seed is left out.")
    return " ".join(sentences)


def _evidence_sentences(judged: JudgedClaim) -> list[str]:
    found = judged.assessment
    if found is None:
        if judged.obstacle:
            return [judged.obstacle]
        runs = ", ".join(map(str, judged.unmeasured))
        return [f"No value yet of run{'s' if len(judged.unmeasured) > 1 else ''} {runs}."]
    weakest = judged.weakest
    sentences = [_describe_basis(judged)]
    if weakest is not None:
        which = "Weakest step" if len(found.steps) > 1 else "Step"
        sentences.append(f"{which}: {describe_step(weakest, found.basis)}.")
    if found.highest is not None:
        percent = format_percent(100 * found.highest)
        sentences.append(f"Probability that the run named is first: {percent} %.")
    if judged.verdict is ClaimVerdict.UNDECIDED:
        sentences += _describe_need(judged)
    return sentences


def describe_step(step: Step, basis: Basis) -> str:
    """Return a comparison with its difference and its interval."""
    if basis is Basis.VALUES:
        return f"{step.name}, {format_significant(abs(step.difference))} " + (
            "within the bound" if step.p_holds == 0 else "beyond the bound"
        )
    difference, low, high = (
        format_percent(value, signed=True) for value in (step.difference, *step.interval)
    )
    return f"{step.name}: {difference} [{low}, {high}]"


def _describe_basis(judged: JudgedClaim) -> str:
    found = judged.assessment
    if found is None or found.basis is Basis.VALUES:
        return "Every network satisfies the bound or not; nothing is estimated."
    p = f"p = {format_significant(judged.p or 0.0)}"
    if found.basis is Basis.ROUNDS:
        return f"Percent saved in {found.seeds} rounds of a benchmark ({found.setting}); {p}."
    if found.basis is Basis.IMAGES:
        return f"One seed: a bootstrap over the test images, without the spread of seeds; {p}."
    return f"{found.seeds} seeds, {p}."


def _describe_need(judged: JudgedClaim) -> list[str]:
    basis = judged.assessment.basis if judged.assessment else Basis.IMAGES
    if basis is Basis.VALUES:
        return []
    if basis is Basis.ROUNDS:
        return ["More rounds of the benchmark may decide it."]
    if basis is Basis.IMAGES:
        return ["A second seed would show the spread between seeds."]
    if judged.further_seeds is None:
        return ["More seeds would not decide it, if means and spread stay as they are."]
    return [f"{pluralize(judged.further_seeds, 'further seed')} would decide it."]


def claim_record(judged: JudgedClaim) -> dict[str, Any]:
    """Return a claim and its verdict as plain values; None where nothing was measured."""
    found, claim = judged.assessment, judged.claim
    return {
        "id": claim.id,
        "claim": claim.text,
        "source": claim.source,
        "relation": claim.kind,
        "verdict": str(judged.verdict),
        "published": judged.published or None,
        "basis": str(found.basis) if found else None,
        "seeds": found.seeds if found else None,  # or rounds of a benchmark
        "p": judged.p,
        "probability_first": found.highest if found else None,
        "further_seeds": judged.further_seeds,
        "unfinished_runs": list(judged.unmeasured),
        "obstacle": judged.obstacle or None,
        "excluded": ", ".join(judged.excluded) or None,
        "steps": [_step_record(step) for step in found.steps] if found else [],
    }


def _step_record(step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "difference": step.difference,
        "interval_low": step.interval[0],
        "interval_high": step.interval[1],
        "p_holds": step.p_holds,
        "p_opposite": step.p_opposite,
    }
