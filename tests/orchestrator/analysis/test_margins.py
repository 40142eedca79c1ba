import math

import numpy as np
import pytest
import torch
from scipy import stats

from aol.training import metrics
from orchestrator.analysis.margins import (
    certified,
    certified_share,
    compare,
    margins_agree,
    read_margins,
)
from orchestrator.spec.schema import RADII


def scores_and_margins(images=500, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    labels = scores.argmax(1)
    labels[::4] = 3
    margins = metrics.round_down(metrics.margins(scores, labels))
    return scores, labels, read_margins(margins.numpy().astype("<f4").tobytes())


@pytest.mark.parametrize("name", RADII)
def test_margins_give_the_metrics_of_the_training_core(name):
    scores, labels, margins = scores_and_margins()
    radius = RADII[name]
    expected = metrics.certified(scores, labels, radius)

    assert (certified(margins, radius) == expected.numpy()).all()
    assert margins_agree(margins, radius, float(expected.double().mean()))
    assert not margins_agree(margins, radius, float(expected.double().mean()) + 1 / len(margins))


def test_the_radii_are_those_of_the_training_core():
    assert RADII == {"accuracy": 0.0, **metrics.RADII}


def test_a_tie_may_count_either_way():
    margins = read_margins(np.array([1.0, math.sqrt(2), -1.0, 3.0], "<f4").tobytes())

    assert margins_agree(margins, 1.0, 0.25)
    assert margins_agree(margins, 1.0, 0.5)
    assert not margins_agree(margins, 1.0, 0.75)


def test_half_a_margin_is_refused():
    with pytest.raises(ValueError, match="buffer size"):
        read_margins(b"\0" * 7)


def test_a_comparison_counts_pairs_and_tests_them():
    """
    McNemar's exact test is a coin for each image that only one network has.
    """
    first = np.full(1000, 5.0, np.float32)
    second = first.copy()
    first[:10] = -1
    second[5:40] = -1
    (found,) = compare(first, second, [0.0])

    assert (found.only_first, found.only_second) == (30, 5)
    assert (found.first, found.second) == (0.99, 0.965)
    assert found.p == pytest.approx(stats.binomtest(5, 35).pvalue)
    low, high = found.interval
    deviation = math.sqrt((35 / 1000 - 0.025**2) / 1000)
    assert low == pytest.approx(-0.025 - 1.96 * deviation, abs=1.5e-3)
    assert high == pytest.approx(-0.025 + 1.96 * deviation, abs=1.5e-3)


def test_a_network_does_not_differ_from_itself():
    *_, margins = scores_and_margins()
    for found in compare(margins, margins, list(RADII.values())):
        assert (found.only_first, found.only_second, found.p) == (0, 0, 1.0)
        assert found.interval == (0.0, 0.0)


def test_the_shares_of_a_comparison_fall_with_the_radius():
    *_, first = scores_and_margins(seed=1)
    *_, second = scores_and_margins(seed=2)
    found = compare(first, second, [0.0, 0.1, 0.5])

    assert [item.first for item in found] == [
        certified_share(first, radius) for radius in (0.0, 0.1, 0.5)
    ]
    assert found[0].second > found[1].second > found[2].second


def test_other_images_are_refused():
    with pytest.raises(ValueError, match="500 and 400 images are not the same test set"):
        compare(np.ones(500, np.float32), np.ones(400, np.float32), [0.0])
