import math

import numpy as np
import pytest
import torch

from aol.certification import certificate
from aol.training import metrics
from orchestrator.analysis.margins import certified, margins_agree, read_margins
from orchestrator.spec.fields import RADII


def scores_and_margins(images=500, classes=10):
    generator = torch.Generator().manual_seed(0)
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
    assert RADII == {"accuracy": 0.0, **certificate.RADII}


def test_a_tie_may_count_either_way():
    margins = read_margins(np.array([1.0, math.sqrt(2), -1.0, 3.0], "<f4").tobytes())

    assert margins_agree(margins, 1.0, 0.25)
    assert margins_agree(margins, 1.0, 0.5)
    assert not margins_agree(margins, 1.0, 0.75)


def test_truncated_margins_are_rejected():
    with pytest.raises(ValueError, match="buffer size"):
        read_margins(b"\0" * 7)
