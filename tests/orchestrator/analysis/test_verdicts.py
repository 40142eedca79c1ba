from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from orchestrator.analysis.tables import Cell
from orchestrator.analysis.verdicts import LEVEL, Verdict, describe_verdict, judge_cells
from orchestrator.spec.schema import Prior, Reproduction

RULES = Reproduction(margin=1.0, decimals=1, prior=Prior(sd=0.2, freedom=4))
EMPTY = Cell("cifar10", "AOL-Small", 0, "Std Acc", "accuracy", 70.3, margin=1.0, images=10_000)


def with_values(*values, **changes):
    return replace(EMPTY, values=values, **changes)


def verdict_of(*values, **changes):
    (judged,) = judge_cells([with_values(*values, **changes)], RULES)
    return judged


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [
        (EMPTY, Verdict.MISSING),
        (replace(EMPTY, started=True), Verdict.PARTIAL),
        (with_values(70.3), Verdict.REPRODUCED),
        (with_values(70.5, started=True), Verdict.REPRODUCED),
        (with_values(70.9), Verdict.UNDERPOWERED),
        (with_values(72.5), Verdict.DIFFERS),
        (with_values(68.1), Verdict.DIFFERS),
        (with_values(71.5), Verdict.UNDERPOWERED),
        (with_values(70.9, 70.8, 70.7, 70.8, 70.9), Verdict.REPRODUCED),
        (with_values(70.0, 71.5, 68.0), Verdict.UNDERPOWERED),
        (with_values(70.9, margin=2.0), Verdict.REPRODUCED),
    ],
)
def test_each_verdict_where_it_belongs(cell, verdict):
    assert judge_cells([cell], RULES)[0].verdict is verdict


@pytest.mark.parametrize(
    ("given_up", "why"),
    [
        ((), ""),
        (("diverged",), ": it diverged"),
        (("diverged", "is unsound"), ": it diverged or is unsound"),
    ],
)
def test_a_missing_cell_says_no_more_of_its_run_than_is_known(given_up, why):
    """
    It may be finished and lack the metric.
    """
    (judged,) = judge_cells([replace(EMPTY, given_up=given_up)], RULES)

    assert describe_verdict(judged) == f"missing: run 0 has no value{why}; 70.3 published."


def test_nothing_differs_whose_interval_reaches_into_the_margin():
    """
    One cell by itself is tested on one side, at 5%, and its interval leaves 2.5% on each.
    """
    for value in np.linspace(71.5, 72.5, 41):
        judged = verdict_of(float(value))
        assert (judged.verdict is Verdict.DIFFERS) == (judged.interval[0] > 1), value
    reaching = verdict_of(71.97)

    assert reaching.p_differs < LEVEL
    assert reaching.verdict is Verdict.UNDERPOWERED


def test_the_further_seeds_bring_the_interval_out_of_the_margin():
    judged = verdict_of(71.97)
    seeds = 1 + judged.further_seeds

    def lower_end(seeds):
        half = stats.t.ppf(0.975, 3 + seeds) * 0.2 * sqrt(1 + 1 / seeds) + 0.05
        return 1.67 - half

    assert lower_end(seeds - 1) <= 1 < lower_end(seeds)


def test_one_seed_has_the_priors_spread_and_says_so():
    judged = verdict_of(70.5)
    half = stats.t.ppf(0.975, 4) * 0.2 * sqrt(2) + 0.05

    assert judged.spread.from_prior
    assert (judged.spread.sd, judged.spread.freedom) == (pytest.approx(0.2), 4)
    assert judged.interval == pytest.approx((0.2 - half, 0.2 + half))


def test_the_spread_of_several_seeds_is_pooled_with_the_prior():
    """
    Variances 0.04 with 4 degrees of freedom and 0.16 with 2.
    """
    judged = verdict_of(70.3, 70.7, 69.9)

    assert not judged.spread.from_prior
    assert judged.spread.freedom == 6
    assert judged.spread.sd == pytest.approx(sqrt((4 * 0.04 + 2 * 0.16) / 6))
    half = stats.t.ppf(0.975, 6) * judged.spread.sd * sqrt(1 + 1 / 3) + 0.05
    assert judged.interval == pytest.approx((-half, half))


def test_equivalence_is_the_interval_of_90_percent_within_the_margin():
    """
    Two one-sided tests at 5% say just that.
    """
    for value in np.linspace(70.3, 71.3, 41):
        judged = verdict_of(float(value))
        half = stats.t.ppf(0.95, 4) * 0.2 * sqrt(2) + 0.05
        within = value - 70.3 + half < 1
        assert (judged.p_equivalent < LEVEL) == within, value


def test_rounding_of_the_published_value_widens_everything():
    exact = Reproduction(decimals=6)
    (coarse,), (fine,) = (
        judge_cells([with_values(70.6)], RULES),
        judge_cells([with_values(70.6)], exact),
    )

    assert coarse.interval[0] == pytest.approx(fine.interval[0] - 0.05, abs=1e-5)
    assert coarse.p_equivalent > fine.p_equivalent
    assert coarse.p_differs > fine.p_differs


def test_holm_corrects_for_the_cells_judged_together():
    alone = verdict_of(72.2)
    together = judge_cells([with_values(72.2)] + [with_values(70.3)] * 69 + [EMPTY], RULES)

    assert together[0].p_differs == pytest.approx(min(1, 70 * alone.p_differs))
    assert alone.verdict is Verdict.DIFFERS
    assert together[0].verdict is Verdict.UNDERPOWERED


def test_holms_correction_is_that_of_statsmodels():
    cells = [with_values(70.3 + shift) for shift in (0.1, 1.5, 1.6, 1.7, 1.72, 1.9, 2.4)]
    alone = [judge_cells([cell], RULES)[0].p_differs for cell in cells]
    together = [judged.p_differs for judged in judge_cells(cells, RULES)]

    assert together == pytest.approx(list(multipletests(alone, method="holm")[1]))


def after(seeds, value, others=()):
    """
    The verdict with as many more values that keep the mean, with the prior's spread.
    """
    offsets = stats.norm.ppf((np.arange(seeds + 1) + 0.5) / (seeds + 1))
    offsets *= 0.2 / offsets.std(ddof=1) if seeds else 0
    cells = [with_values(*(value + offsets)), *map(with_values, others)]
    return judge_cells(cells, RULES)[0].verdict


def test_the_further_seeds_settle_the_cell_if_nothing_else_changes():
    judged = verdict_of(70.75)
    fewer, enough = judged.further_seeds - 1, judged.further_seeds

    assert judged.verdict is Verdict.UNDERPOWERED
    assert after(fewer, 70.75) is Verdict.UNDERPOWERED
    assert after(enough, 70.75) is Verdict.REPRODUCED


@pytest.mark.parametrize(
    ("value", "others"),
    [
        (71.9, [70.3] * 3),
        (71.85, [60.0] * 69),
        (71.9, [60.0] * 9 + [71.95] * 3),
        (71.9, [60.0] * 9 + [71.95] * 2 + [70.3]),
    ],
)
def test_the_further_seeds_are_those_that_holm_asks_for_among_the_other_cells(value, others):
    """
    What differs already stays ahead and is not counted; what is undecided is, also ahead of it.
    """
    cells = [with_values(value), *map(with_values, others)]
    further = judge_cells(cells, RULES)[0].further_seeds

    assert after(further - 1, value, others) is Verdict.UNDERPOWERED
    assert after(further, value, others) is Verdict.DIFFERS


def test_no_number_of_seeds_settles_what_the_papers_single_one_leaves_open():
    assert verdict_of(71.2).further_seeds is None


def test_the_binomial_interval_is_that_of_one_share_of_the_test_images():
    """
    70.3% of 10,000: 0.9 points either way, more than four times the spread between seeds.
    """
    share = 0.703
    assert verdict_of(70.3).binomial == pytest.approx(
        100 * 1.96 * sqrt(share * (1 - share) / 10_000), rel=0.01
    )


def reproductions(count, shift, seeds, rng, *, sd=0.2):
    """
    Simulated reports of seventy cells, (count, 70): the paper's single run, printed with one
    decimal, and ours, (count, 70, seeds).
    """
    truth = rng.uniform(5, 90, (count, 70))
    published = np.round(truth + rng.normal(0, sd, truth.shape), 1)
    return published, truth[..., None] + shift + rng.normal(0, sd, (count, 70, seeds))


def verdicts(published, ours):
    """
    The verdict of every cell, of many reports at once: what `judge_cells` gives report by report.
    """
    seeds = ours.shape[-1]
    freedom = 4 + seeds - 1
    own = ours.var(-1, ddof=1) * (seeds - 1) if seeds > 1 else 0
    error = np.sqrt((4 * 0.2**2 + own) / freedom * (1 + 1 / seeds))
    difference = abs(ours.mean(-1) - published)
    equivalent = stats.t.sf((1 - 0.05 - difference) / error, freedom) < LEVEL
    outside = difference - 0.05 - stats.t.ppf(0.975, freedom) * error > 1
    p_differs = stats.t.sf((difference - 0.05 - 1) / error, freedom)
    order = p_differs.argsort(-1)
    scaled = np.take_along_axis(p_differs, order, -1) * np.arange(70, 0, -1)
    rejected = np.empty_like(equivalent)  # Holm: all up to the first that is not
    np.put_along_axis(rejected, order, np.maximum.accumulate(scaled, -1) < LEVEL, -1)
    found = np.where(rejected & outside, Verdict.DIFFERS, Verdict.UNDERPOWERED)
    return np.where(equivalent, Verdict.REPRODUCED, found)


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_the_simulated_verdicts_are_those_of_the_program(seeds):
    """
    Of seventy cells judged together: some differ, some are reproduced, some are open.
    """
    rng = np.random.default_rng(seeds)
    shift = rng.uniform(-4, 4, (4, 70, 1))
    published, ours = reproductions(4, shift, seeds, rng)
    expected = [
        [
            judged.verdict
            for judged in judge_cells(
                [
                    with_values(*map(float, values), published=float(value))
                    for value, values in zip(*report, strict=True)
                ],
                RULES,
            )
        ]
        for report in zip(published, ours, strict=True)
    ]

    assert verdicts(published, ours).tolist() == expected
    assert len({verdict for report in expected for verdict in report}) == 3


REPORTS = 3_000


@pytest.mark.parametrize(("seeds", "shift"), [(1, 0.0), (3, 0.0), (1, 1.0), (5, -1.0)])
def test_true_reproductions_are_seldom_called_different(seeds, shift):
    """
    In the worst case with every true difference at the end of the margin: at most one report in
    twenty has a cell that is said to differ.
    """
    found = verdicts(*reproductions(REPORTS, shift, seeds, np.random.default_rng(seeds)))

    assert (found == Verdict.DIFFERS).any(-1).mean() <= 0.05


def test_a_prior_that_is_half_of_the_truth_costs_that_guarantee():
    """
    With every true difference at the end of the margin, about one report in ten: docs/verdicts.md.
    """
    found = verdicts(*reproductions(REPORTS, 1.0, 5, np.random.default_rng(5), sd=0.4))

    assert 0.05 < (found == Verdict.DIFFERS).any(-1).mean() < 0.15


@pytest.mark.parametrize("seeds", [1, 5])
def test_what_is_beyond_the_margin_is_seldom_called_reproduced(seeds):
    found = verdicts(*reproductions(REPORTS, 1.0, seeds, np.random.default_rng(seeds)))

    assert (found == Verdict.REPRODUCED).mean() <= 0.05


def test_true_reproductions_with_five_seeds_are_called_so():
    found = verdicts(*reproductions(REPORTS, 0.0, 5, np.random.default_rng(0)))

    assert (found == Verdict.REPRODUCED).mean() >= 0.95


@pytest.mark.parametrize("value", [100.1, -0.1, 170.0])
def test_what_is_no_share_of_the_images_has_no_binomial_error(value):
    judged = verdict_of(value)

    assert judged.binomial is None
    assert "Binomial" not in describe_verdict(judged)
