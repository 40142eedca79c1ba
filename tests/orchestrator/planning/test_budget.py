from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.analysis.tables import Cell
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.errors import RequestError
from orchestrator.planning.budget import choose_within_budget, parse_budget
from orchestrator.planning.remaining import RunNeeds, Training
from orchestrator.spec.schema import Prices

CELL = Cell("t", "r", 0, "Std Acc", "accuracy", 70.0, margin=1.0, images=10_000)


def need(hours, *seeds):
    """
    A run whose seeds take so many hours each, with a cell per number of seeds that settles it.
    """
    cells = tuple(CellVerdict(CELL, Verdict.UNDERPOWERED, further_seeds=number) for number in seeds)
    most = max((number or 0 for number in seeds), default=0)
    trainings = tuple(Training(number, 3, hours) for number in range(most))
    return RunNeeds(None, cells, trainings, timed=True)


def chosen(needs, hours):
    places = {id(need): place for place, need in enumerate(needs)}
    return [(places[id(one.need)], one.seeds) for one in choose_within_budget(needs, hours)]


@pytest.mark.parametrize(
    ("text", "hours"), [("40gpuh", 40.0), ("2.5 GPUh", 2.5), ("100usd", 25.0), ("8 USD", 2.0)]
)
def test_a_budget_is_gpu_hours_or_money(text, hours):
    assert parse_budget(text, Prices(gpu_hour=4.0)) == hours


@pytest.mark.parametrize("text", ["40", "gpuh", "-1gpuh", "1e3gpuh", "10eur", ""])
def test_another_budget_is_refused_with_an_example(text):
    with pytest.raises(RequestError, match="write for example 40gpuh or 100usd"):
        parse_budget(text, Prices(gpu_hour=4.0))


def test_without_a_price_money_is_no_budget():
    with pytest.raises(RequestError, match=r"write for example 40gpuh$"):
        parse_budget("100usd", Prices(gpu_hour=0.0))


def test_most_cells_an_hour_come_first_and_what_cannot_be_paid_is_left():
    needs = [need(4, 1), need(1, 1, 1, 1), need(2, 1, 1)]

    assert chosen(needs, 7) == [(1, 1), (2, 1), (0, 1)]
    assert chosen(needs, 6.9) == [(1, 1), (2, 1)]
    assert chosen(needs, 0.5) == []


def test_two_that_fit_together_are_better_than_the_one_that_is_best_alone():
    """
    By cells an hour alone the first would be taken, and the budget be spent.
    """
    needs = [need(5, *[1] * 6), need(4, *[1] * 4), need(4, *[1] * 4)]

    assert chosen(needs, 8) == [(1, 1), (2, 1)]


def test_as_many_seeds_are_bought_as_settle_something():
    needs = [need(1, 1, 4, None)]

    assert chosen(needs, 10) == [(0, 4)]
    assert chosen(needs, 3) == [(0, 1)]


def test_of_choices_that_settle_as_many_the_cheapest_is_taken():
    assert chosen([need(3, 1), need(2, 1)], 3) == [(1, 1)]


def test_nothing_to_settle_needs_no_money():
    assert choose_within_budget([], 10) == []
    assert choose_within_budget([need(1, None)], 10) == []


@given(
    runs=st.lists(
        st.tuples(st.integers(1, 6), st.lists(st.integers(1, 3), min_size=1, max_size=4)),
        min_size=1,
        max_size=5,
    ),
    hours=st.integers(0, 20),
)
def test_no_other_choice_settles_more(runs, hours):
    """
    Against every combination of numbers of seeds.
    """
    needs = [need(cost, *seeds) for cost, seeds in runs]
    found = choose_within_budget(needs, hours)
    best = max(
        sum(len(one.settled_by(seeds)) for one, seeds in zip(needs, combination, strict=True))
        for combination in product(range(4), repeat=len(needs))
        if sum(
            one.hours(min(seeds, len(one.trainings)))
            for one, seeds in zip(needs, combination, strict=True)
        )
        <= hours
    )

    assert sum(choice.hours for choice in found) <= hours
    assert sum(len(choice.settled) for choice in found) == best
