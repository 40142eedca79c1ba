"""Selection of the runs that resolve most cells within a budget."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.analysis.verdicts import CellVerdict
from orchestrator.errors import RequestError
from orchestrator.planning.unresolved import RunNeeds, Training
from orchestrator.spec.schema import Prices

AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
GPU_HOURS = "gpuh"


@dataclass(frozen=True)
class Allocation:
    """A number of further seeds of one run."""

    needs: RunNeeds
    seeds: int

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Return the trainings of the seeds."""
        return self.needs.trainings[: self.seeds]

    @property
    def hours(self) -> float:
        """Return the GPU-hours of the seeds."""
        return self.needs.hours(self.seeds)

    @property
    def resolved(self) -> tuple[CellVerdict, ...]:
        """Return the cells that the seeds would resolve."""
        return self.needs.resolved_by(self.seeds)


def parse_budget(text: str, prices: Prices) -> float:
    """Return the GPU-hours of `40gpuh`, or of money such as `100usd`. Raises: RequestError."""
    match = AMOUNT.fullmatch(text.strip())
    unit = match[2].casefold() if match else ""
    if match and unit == GPU_HOURS:
        return float(match[1])
    if match and unit == prices.currency.casefold() and prices.gpu_hour:
        return float(match[1]) / prices.gpu_hour
    money = f" or 100{prices.currency.lower()}" if prices.gpu_hour else ""
    raise RequestError(f"--budget {text}: write for example 40{GPU_HOURS}{money}")


def allocate_budget(needs: Sequence[RunNeeds], hours: float) -> list[Allocation]:
    """Return the seeds that resolve most cells within the GPU-hours, most cells per hour first.

    Of allocations that resolve equally many cells, the cheapest is chosen. This is an integer
    program, solved exactly: the value of an allocation is the number of cells that it resolves, and
    each run has at most one.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp

    options = [Allocation(run, seeds) for run in needs for seeds in run.seed_counts]
    if not options:
        return []
    costs = np.array([option.hours for option in options])
    cells = np.array([len(option.resolved) for option in options])
    of_run = np.array([[option.needs is run for option in options] for run in needs], float)
    tie_breaker = 0.5 / max(1.0, costs.sum())  # all hours together weigh less than one cell
    solution = milp(
        tie_breaker * costs - cells,
        integrality=np.ones(len(options), int),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(costs, ub=hours), LinearConstraint(of_run, ub=1)],
        options={"mip_rel_gap": 0.0},
    )
    chosen = np.asarray(solution.x) > 0.5
    allocations = [option for option, is_chosen in zip(options, chosen, strict=True) if is_chosen]
    return sorted(allocations, key=lambda option: option.hours / len(option.resolved))
