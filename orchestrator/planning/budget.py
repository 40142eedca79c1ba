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
ROUNDING = 1e-9  # float error of a sum of hours, relative to the budget


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

    Of allocations that resolve equally many cells, the cheapest is chosen. Each run has at most one
    allocation. The choice is exact: run by run, it updates the fewest hours that resolve each
    number of cells.
    """
    import numpy as np

    options = [[Allocation(run, seeds) for seeds in run.seed_counts] for run in needs]
    most = sum(max((len(option.resolved) for option in group), default=0) for group in options)
    fewest_hours = np.full(most + 1, np.inf)  # by number of cells
    fewest_hours[0] = 0.0
    choices = []
    for group in options:
        before, choice = fewest_hours.copy(), np.full(most + 1, -1, np.int8)
        for index, option in enumerate(group):
            cells = len(option.resolved)
            with_option = before[: most + 1 - cells] + option.hours
            better = np.flatnonzero(with_option < fewest_hours[cells:])
            fewest_hours[cells + better] = with_option[better]
            choice[cells + better] = index
        choices.append(choice)
    left = int(np.flatnonzero(fewest_hours <= hours * (1 + ROUNDING))[-1])
    allocations = []
    for group, choice in zip(reversed(options), reversed(choices), strict=True):
        if choice[left] >= 0:
            allocations.append(group[choice[left]])
            left -= len(allocations[-1].resolved)
    allocations.reverse()
    return sorted(allocations, key=lambda option: option.hours / len(option.resolved))
