from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.tables import Cell
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.errors import RequestError
from orchestrator.planning.budget import allocate_budget, parse_budget
from orchestrator.planning.unresolved import RunNeeds, Training
from orchestrator.spec.schema import Prices

CELL = Cell("t", "r", 0, "Std Acc", "accuracy", 70.0, margin=1.0, images=10_000)


def needs_of(hours, *seeds):
    """
    Return a run whose seeds take so many hours each, with a cell per number of further seeds.
    """
    cells = tuple(CellVerdict(CELL, Verdict.UNDERPOWERED, further_seeds=number) for number in seeds)
    most = max((number or 0 for number in seeds), default=0)
    trainings = tuple(Training(number, 3, hours) for number in range(most))
    return RunNeeds(None, cells, trainings, timed=True)


def allocated(needs, hours):
    """
    Return the indices of the chosen runs and their numbers of seeds.
    """
    indices = {id(run): index for index, run in enumerate(needs)}
    return [(indices[id(one.needs)], one.seeds) for one in allocate_budget(needs, hours)]


@pytest.mark.parametrize(
    ("text", "hours"), [("40gpuh", 40.0), ("2.5 GPUh", 2.5), ("100usd", 25.0), ("8 USD", 2.0)]
)
def test_a_budget_is_gpu_hours_or_money(text, hours):
    assert parse_budget(text, Prices(gpu_hour=4.0)) == hours


@pytest.mark.parametrize("text", ["40", "gpuh", "-1gpuh", "1e3gpuh", "10eur", ""])
def test_an_invalid_budget_is_rejected_with_an_example(text):
    with pytest.raises(RequestError, match="write for example 40gpuh or 100usd"):
        parse_budget(text, Prices(gpu_hour=4.0))


def test_a_budget_of_money_needs_a_price():
    with pytest.raises(RequestError, match=r"write for example 40gpuh$"):
        parse_budget("100usd", Prices(gpu_hour=0.0))


def test_runs_with_most_cells_per_hour_come_first():
    needs = [needs_of(4, 1), needs_of(1, 1, 1, 1), needs_of(2, 1, 1)]

    assert allocated(needs, 7) == [(1, 1), (2, 1), (0, 1)]
    assert allocated(needs, 6.9) == [(1, 1), (2, 1)]
    assert allocated(needs, 0.5) == []


def test_two_runs_that_fit_together_beat_a_single_better_one():
    """
    A greedy choice by cells per hour would take the first and exhaust the budget.
    """
    needs = [needs_of(5, *[1] * 6), needs_of(4, *[1] * 4), needs_of(4, *[1] * 4)]

    assert allocated(needs, 8) == [(1, 1), (2, 1)]


def test_only_seeds_that_resolve_cells_are_chosen():
    needs = [needs_of(1, 1, 4, None)]

    assert allocated(needs, 10) == [(0, 4)]
    assert allocated(needs, 3) == [(0, 1)]


def test_of_equally_good_allocations_the_cheapest_is_chosen():
    assert allocated([needs_of(3, 1), needs_of(2, 1)], 3) == [(1, 1)]


def test_a_budget_of_exactly_the_hours_is_enough():
    """
    The sum of three tenths is larger than 0.3 in binary.
    """
    assert len(allocated([needs_of(0.1, 1), needs_of(0.1, 1), needs_of(0.1, 1)], 0.3)) == 3


def test_hundreds_of_runs_share_a_budget():
    """
    A solver of integer programs searches for minutes among so many different hours.
    """
    hours = Random(0).choices(range(100, 200), k=300)
    needs = [needs_of(each / 7, 1, 1, 2, 5) for each in hours]
    chosen = allocate_budget(needs, 2000.0)
    spent = sum(one.hours for one in chosen)
    idle = {id(run) for run in needs} - {id(one.needs) for one in chosen}

    assert 1990 < spent <= 2000
    assert all(spent + run.hours(1) > 2000 for run in needs if id(run) in idle)


def test_nothing_is_chosen_if_nothing_can_be_resolved():
    assert allocate_budget([], 10) == []
    assert allocate_budget([needs_of(1, None)], 10) == []


@given(
    runs=st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
        min_size=1,
        max_size=5,
    ),
    hours=st.integers(0, 20),
)
def test_no_other_allocation_resolves_more(runs, hours):
    """
    The oracle is every combination of numbers of seeds.
    """
    needs = [needs_of(cost, *seeds) for cost, seeds in runs]
    allocations = allocate_budget(needs, hours)
    best = max(
        sum(len(one.resolved_by(seeds)) for one, seeds in zip(needs, combination, strict=True))
        for combination in product(range(4), repeat=len(needs))
        if sum(
            one.hours(min(seeds, len(one.trainings)))
            for one, seeds in zip(needs, combination, strict=True)
        )
        <= hours
    )

    assert sum(allocation.hours for allocation in allocations) <= hours
    assert sum(len(allocation.resolved) for allocation in allocations) == best
