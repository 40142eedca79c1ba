import math
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.analysis.compare import compare_margins, compare_runs
from orchestrator.analysis.margins import certified_share, describe_missing_margins
from orchestrator.errors import RecordError, RequestError, SpecError
from orchestrator.spec.fields import RADII
from orchestrator.store import Status
from tests.support.reports import damage_margins, finish_with_margins
from tests.support.stores import ORIGIN


def random_margins(seed):
    return np.random.default_rng(seed).normal(1, 1, 500).astype("<f4")


def discordant(only_first, only_second, images):
    """
    Return margins of two networks of which each classifies so many images alone correctly.
    """
    first, second = np.ones((2, images), "<f4")
    second[:only_first] = -1
    first[only_first : only_first + only_second] = -1
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (5, 5, 1.0),
        (12, 13, 1.0),
        (5, 30, 2.2361520677804947e-05),
        (30, 5, 2.2361520677804947e-05),
        (1, 10, 0.01171875),
        (0, 20, 1.9073486328125e-06),
        (100, 140, 0.01166409231767769),
        (1_000, 1_100, 0.03072070786424249),
    ],
)
def test_the_p_value_is_that_of_mcnemars_exact_test(only_first, only_second, p):
    """
    The tabulated values were computed with statsmodels, `mcnemar(table, exact=True)`.
    """
    (comparison,) = compare_margins(*discordant(only_first, only_second, 3_000), [0.0])

    assert (comparison.only_first, comparison.only_second) == (only_first, only_second)
    assert comparison.p == pytest.approx(p, rel=1e-12)


def test_the_interval_of_the_difference_is_that_of_the_normal_approximation():
    (comparison,) = compare_margins(*discordant(30, 5, 1_000), [0.0])
    deviation = math.sqrt((35 / 1000 - 0.025**2) / 1000)
    low, high = comparison.interval

    assert (comparison.first, comparison.second) == (0.995, 0.97)
    assert low == pytest.approx(-0.025 - 1.96 * deviation, abs=1.5e-3)
    assert high == pytest.approx(-0.025 + 1.96 * deviation, abs=1.5e-3)


def test_equal_margins_do_not_differ():
    margins = random_margins(0)
    for comparison in compare_margins(margins, margins, list(RADII.values())):
        assert (comparison.only_first, comparison.only_second, comparison.p) == (0, 0, 1.0)
        assert comparison.interval == (0.0, 0.0)


def test_a_comparison_has_the_certified_shares_at_each_radius():
    first, second = random_margins(1), random_margins(2)
    radii = [0.0, 0.1, 0.5]
    comparisons = compare_margins(first, second, radii)

    assert [one.first for one in comparisons] == [certified_share(first, r) for r in radii]
    assert [one.second for one in comparisons] == [certified_share(second, r) for r in radii]


def test_two_runs_are_compared_in_every_column(reported, store):
    finish_with_margins(store, reported.runs[0], np.linspace(-1, 3, 100))
    finish_with_margins(store, reported.runs[1], np.linspace(-0.5, 3.5, 100))
    comparisons = compare_runs(reported, store, (0, 22))

    assert list(comparisons) == list(RADII)
    assert [one.radius for one in comparisons.values()] == list(RADII.values())
    assert all(one.second > one.first for one in comparisons.values())
    assert all(one.only_first == 0 and one.p < 0.01 for one in comparisons.values())


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (Status.FAILED, "is not finished"),
        (Status.UNSOUND, "is unsound"),
        (Status.DIVERGED, "diverged"),
    ],
)
def test_an_unfinished_or_excluded_run_cannot_be_compared(reported, store, status, reason):
    finish_with_margins(store, reported.runs[0], [1.0])
    finish_with_margins(store, reported.runs[1], [1.0], status)

    with pytest.raises(RequestError, match=f"run 22 with seed 22 of the profile `demo` {reason};"):
        compare_runs(reported, store, (0, 22))


def test_an_unknown_run_cannot_be_compared(reported, store):
    with pytest.raises(SpecError, match="there is no run 7"):
        compare_runs(reported, store, (0, 7))


def test_a_run_cannot_be_compared_with_itself(reported, store):
    finish_with_margins(store, reported.runs[0], [1.0])

    with pytest.raises(RequestError, match="run 0 cannot be compared with itself; name two runs"):
        compare_runs(reported, store, (0, 0))


def test_two_runs_of_the_same_settings_are_compared(reported, store):
    """
    Runs 0 and 22 of the paper are such runs.
    """
    first = reported.runs[0]
    twins = replace(reported, runs=(first, first.model_copy(update={"id": 22})))
    for run in twins.runs:
        finish_with_margins(store, run, [1.0] * 10)

    assert twins.runs[0].train == twins.runs[1].train
    assert compare_runs(twins, store, (0, 22))["accuracy"].p == 1.0


def test_a_run_without_margins_cannot_be_compared(reported, store):
    first, second = reported.runs
    finish_with_margins(store, first, [1.0])
    store.queue([second])
    store.start(second, ORIGIN)
    store.finish(second.key, Status.DONE)

    with pytest.raises(RequestError, match="run 22: the store has no margins of 22-s22-"):
        compare_runs(reported, store, (0, 22))


def test_runs_on_different_datasets_cannot_be_compared(reported, store):
    data = replace(reported.runs[1].train.data, name="digit-pairs")
    train = replace(reported.runs[1].train, data=data)
    other = reported.runs[1].model_copy(update={"train": train})

    with pytest.raises(
        RequestError, match="0 and 22 have different datasets: digits and digit-pairs"
    ):
        compare_runs(replace(reported, runs=(reported.runs[0], other)), store, (0, 22))


def test_runs_with_different_numbers_of_images_cannot_be_compared(reported, store):
    finish_with_margins(store, reported.runs[0], [1.0])
    finish_with_margins(store, reported.runs[1], [1.0, 2.0])

    with pytest.raises(RequestError, match="margins of 1 and 2 images"):
        compare_runs(reported, store, (0, 22))


def test_replicates_are_compared_by_number(reported, store):
    for run in reported.replicates([1]).runs:
        finish_with_margins(store, run, [1.0] * 10)

    assert compare_runs(reported, store, (0, 22), replicate=1)["accuracy"].p == 1.0
    with pytest.raises(RequestError, match="run 0 with seed 0"):
        compare_runs(reported, store, (0, 22))


def test_damaged_margins_are_an_error_that_names_the_run(reported, store):
    for run in reported.runs:
        finish_with_margins(store, run, [1.0])
    damage_margins(store, 3)

    with pytest.raises(RecordError, match="run 22, seed 22: its margins in the store are damaged"):
        compare_runs(reported, store, (22, 0))


def test_finished_runs_without_margins_are_listed(reported, store):
    first, second = reported.runs
    finish_with_margins(store, first, [1.0])
    store.queue([second])
    store.start(second, ORIGIN)
    store.finish(second.key, Status.DONE)

    (line,) = describe_missing_margins(reported, store)
    assert line.startswith("run 22, seed 22: left out, because the store has no margins of it; ")
