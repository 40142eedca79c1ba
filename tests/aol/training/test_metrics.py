import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aol.certification.certificate import RADII
from aol.training.metrics import certified, correct, margins, round_down
from tests.support.golden_recipe import golden

GOLDEN = golden("loss_cra")
SCORES = torch.tensor(GOLDEN["cra_scores"])
LABELS = torch.tensor(GOLDEN["cra_labels"])
COLUMNS = {
    "cra_36": "cra_L2_0.141176",
    "cra_72": "cra_L2_0.282353",
    "cra_108": "cra_L2_0.423529",
    "cra_1": "cra_L2_1.000000",
}


def random_rows(seed, *, levels=None):
    """
    Float64 scores (200, 5) and labels; with `levels` many are equal.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    if levels:
        scores = (scores * levels).round() / levels
    return scores, torch.randint(5, (200,), generator=generator)


@pytest.mark.parametrize("name", RADII)
def test_certified_rows_equal_the_authors(name):
    """
    All 4096 rows: score ties, margins of exactly float32(sqrt(2) * radius), tied runners-up.
    """
    theirs = GOLDEN[COLUMNS[name]].astype(bool)

    assert 0 < theirs.sum() < len(theirs)
    assert (certified(SCORES, LABELS, RADII[name]).numpy() != theirs).sum() == 0


def test_correct_rows_equal_the_authors():
    assert (correct(SCORES, LABELS).numpy() != GOLDEN["acc"].astype(bool)).sum() == 0
    assert (certified(SCORES, LABELS, 0.0).numpy() != GOLDEN["cra_L2_0.000000"]).sum() == 0


def test_no_comparison_of_margins_equals_the_authors():
    """
    Why `certified` takes the arg max after the subtraction: at ties both > and >= differ.
    """
    theirs = GOLDEN[COLUMNS["cra_36"]].astype(bool)
    price = torch.tensor(math.sqrt(2) * RADII["cra_36"], dtype=torch.float32)
    margin = margins(SCORES, LABELS)

    assert ((margin > price).numpy() != theirs).any()
    assert ((margin >= price).numpy() != theirs).any()


def test_the_radii_are_the_papers():
    assert RADII == {"cra_36": 36 / 255, "cra_72": 72 / 255, "cra_108": 108 / 255, "cra_1": 1.0}


def test_the_lowest_class_is_predicted_among_equal_scores():
    scores = torch.tensor([[1.0, 1.0, 0.0]] * 3)

    assert correct(scores, torch.tensor([0, 1, 2])).tolist() == [True, False, False]


@given(seed=st.integers(0, 2**32 - 1))
def test_margin_is_the_true_score_less_the_best_other(seed):
    scores, labels = random_rows(seed)
    expected = [
        row[label] - max(score for index, score in enumerate(row) if index != label)
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]

    assert margins(scores, labels).tolist() == expected


@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([None, 2]))
def test_margins_determine_the_result_away_from_ties(seed, levels):
    scores, labels = random_rows(seed, levels=levels)
    margin = margins(scores, labels)
    right = correct(scores, labels)

    assert right[margin > 0].all()
    assert not right[margin < 0].any()
    for radius in RADII.values():
        price = math.sqrt(2) * radius
        held = certified(scores, labels, radius)
        assert held[margin > price + 1e-12].all()
        assert not held[margin < price - 1e-12].any()


@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([None, 3]))
def test_a_larger_radius_certifies_no_more_rows(seed, levels):
    scores, labels = random_rows(seed, levels=levels)

    held = correct(scores, labels)
    for radius in sorted(RADII.values()):
        smaller, held = held, certified(scores, labels, radius)
        assert (held <= smaller).all()


@given(seed=st.integers(0, 2**32 - 1), radius=st.floats(0.01, 1.0))
def test_certified_rows_are_correct_after_any_change_of_a_1_lipschitz_networks_scores(seed, radius):
    """
    The worst change within `radius` takes radius/sqrt(2) off the true class and gives it away.
    """
    scores, labels = random_rows(seed)
    held = certified(scores, labels, radius)
    true = torch.nn.functional.one_hot(labels, 5)

    for other in range(5):
        rival = torch.nn.functional.one_hot(torch.full_like(labels, other), 5)
        moved = scores + (rival - true) * (radius / math.sqrt(2) * (1 - 1e-9))
        assert correct(moved, labels)[held].all()


def test_results_are_one_value_per_row():
    scores, labels = SCORES[:7], LABELS[:7]

    assert correct(scores, labels).shape == (7,)
    assert correct(scores, labels).dtype == torch.bool
    assert certified(scores, labels, 0.1).dtype == torch.bool
    assert margins(scores, labels).dtype == scores.dtype
    assert margins(scores.double(), labels).dtype == torch.float64


def test_inputs_are_not_changed():
    scores, labels = SCORES[:7].clone(), LABELS[:7].clone()
    certified(scores, labels, 1.0)
    margins(scores, labels)

    assert np.array_equal(scores, SCORES[:7])
    assert np.array_equal(labels, LABELS[:7])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    """
    The row of NaN would otherwise be correct for class 0, and one of -inf leave any margin.
    """
    scores, labels = random_rows(0)
    scores[17, 3] = bad

    for measure in (margins, lambda *rows: certified(*rows, 1.0)):
        with pytest.raises(ValueError, match="scores of row 17 are not finite"):
            measure(scores, labels)


@given(value=st.floats(-1e300, 1e300), ulps=st.integers(-3, 3))
def test_rounding_down_gives_the_largest_float32_not_above(value, ulps):
    value = float(np.float32(np.clip(value, -1e38, 1e38))) * (1 + ulps * 2.0**-40)

    found = round_down(torch.tensor([value], dtype=torch.float64)).numpy()[0]
    assert found.dtype == np.float32
    assert float(found) <= value < float(np.nextafter(found, np.float32(np.inf)))


def test_margins_round_down_never_certify_more():
    """
    At each price: the float64 above it, where rounding to the nearest float32 would gain.
    """
    prices = torch.tensor([math.sqrt(2) * r for r in RADII.values()], dtype=torch.float64)
    for margin in (prices, prices - 1e-12, prices + 1e-12):
        assert ((round_down(margin).double() > prices) <= (margin > prices)).all()
    assert ((prices - 1e-12).float().double() > prices).any()
