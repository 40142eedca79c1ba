"""Test the claims of a paper on the runs that were trained."""

from orchestrator.analysis.claims.contrasts import Step
from orchestrator.analysis.claims.describe import (
    claim_record,
    describe_evidence,
    describe_step,
    summarize_claims,
)
from orchestrator.analysis.claims.judge import (
    ClaimVerdict,
    JudgedClaim,
    judge_by_epoch,
    judge_claims,
)
from orchestrator.analysis.claims.measurements import Basis, claimed_radii
from orchestrator.analysis.claims.relations import Assessment

__all__ = [
    "Assessment",
    "Basis",
    "ClaimVerdict",
    "JudgedClaim",
    "Step",
    "claim_record",
    "claimed_radii",
    "describe_evidence",
    "describe_step",
    "judge_by_epoch",
    "judge_claims",
    "summarize_claims",
]
