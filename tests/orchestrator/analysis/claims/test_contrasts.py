"""
The statistics behind claims, against scipy, against closed forms and in simulations.
"""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.claims.contrasts import (
    ImageContrasts,
    SeedContrasts,
    trend_p,
)


def contrasts(values, *, paired=True, least=1e-9):
    return SeedContrasts({run: list(row) for run, row in values.items()}, paired, least)


def test_two_runs_with_shared_seeds_are_compared_by_the_paired_t_test():
    first, second = [70.1, 71.4, 69.8, 70.6], [69.0, 70.9, 69.1, 69.2]
    step = contrasts({1: first, 2: second}).step("", 1, 2)
    expected = stats.ttest_rel(first, second, alternative="greater")

    assert step.difference == pytest.approx(np.mean(first) - np.mean(second))
    assert step.p_holds == pytest.approx(expected.pvalue)
    assert step.p_opposite == pytest.approx(1 - expected.pvalue)
    assert step.interval == pytest.approx(
        tuple(stats.ttest_rel(first, second).confidence_interval())
    )


def test_two_runs_with_other_seeds_are_compared_by_welchs_t_test():
    first, second = [70.1, 71.4, 69.8], [69.0, 72.9, 66.1]
    step = contrasts({1: first, 2: second}, paired=False).step("", 1, 2)
    expected = stats.ttest_ind(first, second, equal_var=False, alternative="greater")

    assert step.p_holds == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("paired", [True, False])
def test_equal_values_have_the_spread_of_half_an_image(paired):
    equal = contrasts({1: [50.0, 50.0], 2: [49.0, 49.0]}, paired=paired, least=0.05)
    low, high = equal.step("", 1, 2).interval
    freedom = 1 if paired else 2

    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * 0.05)


def test_more_seeds_of_equal_means_and_spread_narrow_the_interval():
    few = contrasts({1: [70.0, 72.0, 71.0], 2: [69.0, 70.0, 71.0]})
    more = few.with_seeds(12)
    widths = [np.ptp(one.step("", 1, 2).interval) for one in (few, more)]
    quantiles = [stats.t.ppf(0.975, freedom) for freedom in (2, 11)]

    assert more.mean(1) == few.mean(1) == 71.0
    assert widths[0] / widths[1] == pytest.approx(quantiles[0] / quantiles[1] * 2)
    assert few.with_seeds(3).step("", 1, 2) == few.step("", 1, 2)


@pytest.mark.parametrize("rows", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_the_trend_has_pages_p_value(rows, seeds):
    values = np.random.default_rng(rows * seeds).normal(size=(rows, seeds))
    values += 0.4 * np.arange(rows)[:, None]
    exact = "exact" if rows < 7 else "asymptotic"
    expected = stats.page_trend_test(values.T, method=exact).pvalue

    # scipy's asymptotic value has no correction for continuity
    assert trend_p(values) == pytest.approx(expected, **({"abs": 0.06} if rows == 7 else {}))


def test_equal_rows_have_no_trend():
    assert trend_p([[1.0, 1.0]] * 4) > 0.4


def certified(shares, images=10_000):
    """
    Runs whose images are certified in nested sets of these shares.
    """
    return ImageContrasts(
        {run: 100.0 * (np.arange(images) < share * images) for run, share in shares.items()}
    )


def test_one_seed_is_compared_by_the_images_that_one_run_alone_has():
    """
    By McNemar's test 30 images against none are significant, whatever the other 9,970 are.
    """
    step = certified({1: 0.503, 2: 0.5}).step("", 1, 2)
    error = 100 * np.sqrt(30) / 10_000

    assert step.difference == pytest.approx(0.3)
    assert step.interval == pytest.approx((0.3 - 1.96 * error, 0.3 + 1.96 * error), abs=0.02)
    assert step.p_holds < 0.001
    assert step.p_opposite > 0.99


def test_runs_with_equal_images_are_not_decided_by_them():
    step = certified({1: 0.5, 2: 0.5}).step("", 1, 2)

    assert step.p_holds == step.p_opposite == 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_the_probability_of_being_the_highest_is_one_over_the_number_of_equals(sign):
    equal = contrasts({run: [1.0, 2.0, 3.0] for run in range(4)}, least=1.0)
    ahead = contrasts({0: [9.0, 10.0, 11.0], 1: [0.0, 1.0, 2.0]}, least=1.0)

    assert equal.highest_probability(2, sign) == pytest.approx(0.25, abs=0.02)
    assert certified({1: 0.5, 2: 0.5, 3: 0.1}).highest_probability(2) == pytest.approx(0.5)
    assert ahead.highest_probability(0, sign) == pytest.approx(float(sign > 0), abs=0.01)


def test_a_step_that_is_not_there_is_found_in_five_percent_of_draws_at_most():
    """
    Four rows with a common effect of the seed, compared with each other as a claim does.
    """
    generator = np.random.default_rng(3)
    found = np.zeros(3)
    draws = 2_000
    for _ in range(draws):
        values = generator.normal(size=(4, 3)) + 5 * generator.normal(size=(1, 3))
        table = contrasts(dict(enumerate(values)))
        found += [table.step("", *pair).p_holds < 0.05 for pair in pairwise(range(4))]

    assert np.all(np.abs(found / draws - 0.05) < 3 * np.sqrt(0.05 * 0.95 / draws))


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("sds", [(0.0, 0.0, 0.5, 0.5, 0.5), (0.1, 0.1, 0.1, 0.5, 0.5)])
def test_the_spread_of_other_runs_does_not_change_the_error_rate(sds, paired):
    """
    The last two runs are equal, and noisier than the others.
    """
    generator = np.random.default_rng(4)
    draws, found = 2_000, 0
    for _ in range(draws):
        values = np.array(sds)[:, None] * generator.normal(size=(5, 3))
        step = contrasts(dict(enumerate(values)), paired=paired, least=0.005).step("", 3, 4)
        found += step.p_holds < 0.025

    assert found / draws < 0.025 + 3 * np.sqrt(0.025 * 0.975 / draws)


def test_a_step_is_rarely_found_between_equal_networks_on_drawn_images():
    """
    Of one seed: two networks that are right on each image with equal probability, mostly on the
    same ones.
    """
    generator = np.random.default_rng(5)
    draws, found = 200, 0
    for _ in range(draws):
        common = generator.random(1_000)
        values = {
            run: 100.0
            * (np.where(generator.random(1_000) < 0.1, generator.random(1_000), common) < 0.5)
            for run in (1, 2)
        }
        found += ImageContrasts(values).step("", 1, 2).p_holds < 0.05

    assert found / draws < 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
