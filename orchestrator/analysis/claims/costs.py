"""Tests of a claim about costs on the rounds of a benchmark."""

from dataclasses import replace
from itertools import product
from math import exp, log, sqrt
from statistics import fmean, stdev

from orchestrator.analysis.claims.contrasts import Step, t_step
from orchestrator.spec.claims import Cheaper
from orchestrator.spec.costs import CostRecord

LEAST_SD = 0.001  # of a ratio's logarithm: equal figures do not show that there is no spread


def cost_steps(relation: Cheaper, record: CostRecord) -> list[Step]:
    """Return a step per other method and cost: by how many percent the method is cheaper.

    Rounds are paired; their ratios' logarithms are tested by Student's t. Raises: KeyError if a
    method is not in the record, ValueError if two methods were measured a different number of
    times.
    """
    own = record.methods[relation.method]
    steps = []
    for other, (cost, name) in product(
        relation.than, (("step_ms", "time of a step"), ("peak_mb", "peak memory"))
    ):
        theirs = getattr(record.methods[other], cost)
        pairs = zip(theirs, getattr(own, cost), strict=True)
        ratios = [log(their) - log(our) for their, our in pairs]
        steps.append(_step(f"{relation.method} under {other}, {name}", ratios))
    return steps


def _step(name: str, log_ratios: list[float]) -> Step:
    error = max(stdev(log_ratios), LEAST_SD) / sqrt(len(log_ratios))
    found = t_step(name, fmean(log_ratios), error, len(log_ratios) - 1)
    low, high = map(_saved, found.interval)
    return replace(found, difference=_saved(found.difference), interval=(low, high))


def _saved(log_ratio: float) -> float:
    """Return by how many percent the method is cheaper."""
    return 100 * (1 - exp(-log_ratio))
