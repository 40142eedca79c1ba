"""Which runs to train first when not all can be paid for: most settled cells for the hours."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.verdicts import CellVerdict
from orchestrator.errors import RequestError
from orchestrator.planning.remaining import RunNeeds
from orchestrator.spec.schema import Prices

AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
HOURS = "gpuh"


@dataclass(frozen=True)
class Choice:
    """So many further seeds of a run, in GPU-hours, and the cells that they settle."""

    need: RunNeeds
    seeds: int

    @property
    def hours(self) -> float:
        """GPU-hours of the seeds."""
        return self.need.hours(self.seeds)

    @property
    def settled(self) -> tuple[CellVerdict, ...]:
        """The cells that are decided then."""
        return self.need.settled_by(self.seeds)


def parse_budget(text: str, prices: Prices) -> float:
    """The GPU-hours of `40gpuh`, or of an amount of money like `100usd`. Raises: RequestError."""
    match = AMOUNT.fullmatch(text.strip())
    unit = match[2].casefold() if match else ""
    if match and unit == HOURS:
        return float(match[1])
    if match and unit == prices.currency.casefold() and prices.gpu_hour:
        return float(match[1]) / prices.gpu_hour
    money = f" or 100{prices.currency.lower()}" if prices.gpu_hour else ""
    raise RequestError(f"--budget {text}: write for example 40{HOURS}{money}")


def choose_within_budget(needs: Sequence[RunNeeds], hours: float) -> list[Choice]:
    """The seeds that settle most cells within the hours, most cells an hour first.

    Of choices that settle as many it is the cheapest. An integer program, solved exactly: a run
    is worth the cells it settles, and of its numbers of seeds at most one is chosen.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    offers = [Choice(need, seeds) for need in needs for seeds in need.levels]
    if not offers:
        return []
    costs = np.array([offer.hours for offer in offers])
    cells = np.array([len(offer.settled) for offer in offers])
    once = np.array([[offer.need is need for offer in offers] for need in needs], float)
    tie = 0.5 / max(1.0, costs.sum())  # all hours together count less than a cell
    solved = milp(
        tie * costs - cells,
        integrality=np.ones(len(offers), int),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(costs, ub=hours), LinearConstraint(once, ub=1)],
        options={"mip_rel_gap": 0.0},
    )
    taken = np.asarray(solved.x) > 0.5
    chosen = [offer for offer, yes in zip(offers, taken, strict=True) if yes]
    return sorted(chosen, key=lambda offer: offer.hours / len(offer.settled))
