from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from orchestrator.analysis.tables import Cell
from orchestrator.analysis.verdicts import (
    SIGNIFICANCE_LEVEL,
    Verdict,
    describe_verdict,
    judge_cells,
)
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
def test_cells_get_the_expected_verdict(cell, verdict):
    assert judge_cells([cell], RULES)[0].verdict is verdict


DIVERGED = ("seed 1000 diverged",)
LEFT_OUT = " Left out: seed 1000 diverged. A cell counts as reproduced only if no seed is left out."


@pytest.mark.parametrize(
    ("cell", "verdict"),
    [
        (EMPTY, Verdict.MISSING),
        (replace(EMPTY, started=True), Verdict.PARTIAL),
        (with_values(70.3), Verdict.UNDERPOWERED),
        (with_values(70.9, 70.8, 70.7, 70.8, 70.9), Verdict.UNDERPOWERED),
        (with_values(72.5), Verdict.DIFFERS),
    ],
)
def test_a_cell_with_a_diverged_seed_names_it_and_is_never_reproduced(cell, verdict):
    (judged,) = judge_cells([replace(cell, excluded=DIVERGED)], RULES)

    assert judged.verdict is verdict
    assert describe_verdict(judged).startswith(f"{verdict}: ")
    assert LEFT_OUT in describe_verdict(judged)
    assert judged.further_seeds is None


def test_a_cell_with_a_diverged_seed_can_still_be_shown_to_differ():
    (judged,) = judge_cells([with_values(71.9, excluded=DIVERGED)], RULES)

    assert judged.verdict is Verdict.UNDERPOWERED
    assert after(judged.further_seeds, 71.9, excluded=DIVERGED) is Verdict.DIFFERS


def test_a_missing_cell_without_a_left_out_seed_has_no_reason():
    """
    The run may be finished and lack the metric.
    """
    (judged,) = judge_cells([EMPTY], RULES)

    assert describe_verdict(judged) == "missing: run 0 has no value; 70.3 published."


def test_a_cell_differs_only_if_its_whole_interval_is_beyond_the_margin():
    """
    The one-sided test of a single cell at 5% is less strict than its two-sided interval.
    """
    for value in np.linspace(71.5, 72.5, 41):
        judged = verdict_of(float(value))
        assert (judged.verdict is Verdict.DIFFERS) == (judged.interval[0] > 1), value
    overlapping = verdict_of(71.97)

    assert overlapping.p_differs < SIGNIFICANCE_LEVEL
    assert overlapping.verdict is Verdict.UNDERPOWERED


def test_further_seeds_move_the_interval_beyond_the_margin():
    judged = verdict_of(71.97)
    seeds = 1 + judged.further_seeds

    def lower_end(seeds):
        half = stats.t.ppf(0.975, 3 + seeds) * 0.2 * sqrt(1 + 1 / seeds) + 0.05
        return 1.67 - half

    assert lower_end(seeds - 1) <= 1 < lower_end(seeds)


def test_the_spread_of_one_seed_is_the_prior():
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
    Two one-sided tests at 5% are equivalent to that.
    """
    for value in np.linspace(70.3, 71.3, 41):
        judged = verdict_of(float(value))
        half = stats.t.ppf(0.95, 4) * 0.2 * sqrt(2) + 0.05
        within = value - 70.3 + half < 1
        assert (judged.p_equivalent < SIGNIFICANCE_LEVEL) == within, value


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


def test_holms_correction_equals_tabulated_values():
    """
    The tabulated values were computed with statsmodels, `multipletests(alone, method="holm")`.
    """
    cells = [with_values(70.3 + shift) for shift in (0.1, 1.5, 1.6, 1.7, 1.72, 1.9, 2.4)]
    alone = [judge_cells([cell], RULES)[0].p_differs for cell in cells]
    together = [judged.p_differs for judged in judge_cells(cells, RULES)]
    tabulated = {
        0.9858312517081737: 0.9858312517081737,
        0.09341090006723789: 0.19230195098420044,
        0.061864940852254975: 0.19230195098420044,
        0.0415564313130804: 0.19230195098420044,
        0.03846039019684009: 0.19230195098420044,
        0.019868809602889125: 0.11921285761733474,
        0.004410420856687486: 0.0308729459968124,
    }

    assert alone == pytest.approx(list(tabulated), rel=1e-12)
    assert together == pytest.approx(list(tabulated.values()), rel=1e-12)


def after(seeds, value, others=(), **changes):
    """
    Return the verdict after further seeds that keep the mean and have the prior's spread.
    """
    offsets = stats.norm.ppf((np.arange(seeds + 1) + 0.5) / (seeds + 1))
    offsets *= 0.2 / offsets.std(ddof=1) if seeds else 0
    cells = [with_values(*(value + offsets), **changes), *map(with_values, others)]
    return judge_cells(cells, RULES)[0].verdict


def test_further_seeds_resolve_the_cell_if_nothing_else_changes():
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
def test_further_seeds_take_holms_correction_over_all_cells_into_account(value, others):
    """
    Cells that already differ keep smaller p-values and do not count; undecided cells do.
    """
    cells = [with_values(value), *map(with_values, others)]
    further = judge_cells(cells, RULES)[0].further_seeds

    assert after(further - 1, value, others) is Verdict.UNDERPOWERED
    assert after(further, value, others) is Verdict.DIFFERS


def test_some_cells_cannot_be_resolved_because_the_paper_has_one_seed():
    assert verdict_of(71.2).further_seeds is None


@pytest.mark.parametrize(
    ("count", "images", "half_width"),
    [
        (0, 100, 1.8496749103492847),
        (1, 100, 2.635938205728234),
        (50, 100, 9.616846963400437),
        (100, 100, 1.849674910349286),
        (0, 10_000, 0.019199918533829796),
        (223, 10_000, 0.28992850653878877),
        (5_000, 10_000, 0.9797938184595206),
        (7_030, 10_000, 0.8954411218761171),
        (9_999, 10_000, 0.027430811190010118),
    ],
)
def test_the_binomial_error_is_half_of_the_wilson_interval(count, images, half_width):
    """
    The tabulated values were computed with statsmodels, `proportion_confint(method="wilson")`.
    """
    judged = verdict_of(100 * count / images, images=images)

    assert judged.binomial == pytest.approx(half_width, rel=1e-12)


def reproductions(count, shift, seeds, rng, *, sd=0.2):
    """
    Yield simulated reports of seventy cells, (count, 70): the paper's single run, rounded, and
    ours, (count, 70, seeds).
    """
    truth = rng.uniform(5, 90, (count, 70))
    published = np.round(truth + rng.normal(0, sd, truth.shape), 1)
    return published, truth[..., None] + shift + rng.normal(0, sd, (count, 70, seeds))


def verdicts(published, ours):
    """
    Return the verdicts of the cells of many reports at once, as `judge_cells` does for one report.
    """
    seeds = ours.shape[-1]
    freedom = 4 + seeds - 1
    own = ours.var(-1, ddof=1) * (seeds - 1) if seeds > 1 else 0
    error = np.sqrt((4 * 0.2**2 + own) / freedom * (1 + 1 / seeds))
    difference = abs(ours.mean(-1) - published)
    equivalent = stats.t.sf((1 - 0.05 - difference) / error, freedom) < SIGNIFICANCE_LEVEL
    outside = difference - 0.05 - stats.t.ppf(0.975, freedom) * error > 1
    p_differs = stats.t.sf((difference - 0.05 - 1) / error, freedom)
    order = p_differs.argsort(-1)
    scaled = np.take_along_axis(p_differs, order, -1) * np.arange(70, 0, -1)
    rejected = np.empty_like(equivalent)  # Holm: all up to the first that is not
    np.put_along_axis(rejected, order, np.maximum.accumulate(scaled, -1) < SIGNIFICANCE_LEVEL, -1)
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
def test_true_reproductions_rarely_differ(seeds, shift):
    """
    In the worst case every true difference is at the end of the margin; of a thousand reports at
    most one in twenty may contain a cell that differs.
    """
    found = verdicts(*reproductions(REPORTS, shift, seeds, np.random.default_rng(seeds)))

    assert (found == Verdict.DIFFERS).any(-1).mean() <= 0.05


def test_a_prior_of_half_the_true_spread_breaks_that_guarantee():
    """
    With every true difference at the end of the margin, about one report in ten: docs/verdicts.md.
    """
    found = verdicts(*reproductions(REPORTS, 1.0, 5, np.random.default_rng(5), sd=0.4))

    assert 0.05 < (found == Verdict.DIFFERS).any(-1).mean() < 0.15


@pytest.mark.parametrize("seeds", [1, 5])
def test_differences_beyond_the_margin_are_rarely_reproduced(seeds):
    found = verdicts(*reproductions(REPORTS, 1.0, seeds, np.random.default_rng(seeds)))

    assert (found == Verdict.REPRODUCED).mean() <= 0.05


def test_true_reproductions_with_five_seeds_are_reproduced():
    found = verdicts(*reproductions(REPORTS, 0.0, 5, np.random.default_rng(0)))

    assert (found == Verdict.REPRODUCED).mean() >= 0.95


def test_adding_seeds_until_each_cell_is_decided_inflates_the_error_little():
    """
    From one seed to ten, looking after each, with every true difference at the end of the margin:
    the rates are those of docs/verdicts.md.
    """
    published, ours = reproductions(REPORTS, 1.0, 10, np.random.default_rng(3))
    looks = np.stack([verdicts(published, ours[..., :seeds]) for seeds in range(1, 11)])
    first = (looks != Verdict.UNDERPOWERED).argmax(0)
    found = np.take_along_axis(looks, first[None], 0)[0]

    assert (looks[-1] == Verdict.REPRODUCED).mean() == pytest.approx(0.03, abs=0.005)
    assert (found == Verdict.REPRODUCED).mean() == pytest.approx(0.054, abs=0.005)
    assert (found == Verdict.DIFFERS).any(-1).mean() <= 0.02


@pytest.mark.parametrize("value", [100.1, -0.1, 170.0])
def test_values_that_are_no_percentage_have_no_binomial_error(value):
    judged = verdict_of(value)

    assert judged.binomial is None
    assert "Binomial" not in describe_verdict(judged)
