import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aol.training.loss import offset_cross_entropy
from tests.support.golden_recipe import golden

GOLDEN = golden("loss_cra")
BASES = ["0.0625", "0.25", "1", "4", "16"]


def loss_and_gradient(classes, base, dtype):
    """
    Our rows and the gradient of their mean for offset = sqrt(2) * base, temperature = base / 4.
    """
    scores = torch.tensor(GOLDEN[f"scores{classes}"]).to(dtype).requires_grad_()
    labels = torch.tensor(GOLDEN[f"labels{classes}"])
    rows = offset_cross_entropy(
        scores, labels, offset=math.sqrt(2) * float(base), temperature=float(base) / 4
    )
    (gradient,) = torch.autograd.grad(rows.mean(), scores)
    return rows.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("classes", [10, 100])
def test_float64_equals_the_authors(classes, base):
    """
    They subtract the exact offset; one that was rounded to float32 is off by 2.4e-8 * base.
    """
    rows, gradient = loss_and_gradient(classes, base, torch.float64)
    name = f"c{classes}_base{base}_f64"

    assert np.abs(rows - GOLDEN[f"{name}_loss"]).max() <= 1e-12
    assert rows.mean() == pytest.approx(float(GOLDEN[f"{name}_mean"]), abs=1e-12)
    assert np.abs(gradient - GOLDEN[f"{name}_grad_of_mean"]).max() <= 1e-14


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("classes", [10, 100])
def test_float32_equals_the_authors(classes, base):
    rows, gradient = loss_and_gradient(classes, base, torch.float32)
    name = f"c{classes}_base{base}_f32"

    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, GOLDEN[f"{name}_loss"], rtol=5e-7, atol=1e-6)
    assert np.abs(gradient - GOLDEN[f"{name}_grad_of_mean"]).max() <= 1e-8


@given(
    rows=st.integers(1, 4),
    classes=st.integers(2, 6),
    offset=st.floats(0, 5),
    temperature=st.floats(0.01, 10),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_loss_is_the_papers_formula(rows, classes, offset, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (rows,), generator=generator)

    found = offset_cross_entropy(scores, labels, offset=offset, temperature=temperature)

    for row, label, loss in zip(scores.tolist(), labels.tolist(), found.tolist(), strict=True):
        row[label] -= offset
        top = max(row)
        log_sum = top / temperature + math.log(
            sum(math.exp((score - top) / temperature) for score in row)
        )
        expected = temperature * (log_sum - row[label] / temperature)
        assert loss == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_wide_margin_costs_nothing():
    scores = torch.tensor([[100.0, 0.0, 0.0]])
    labels = torch.tensor([0])

    assert offset_cross_entropy(scores, labels, offset=1.0, temperature=0.25).item() == 0
    assert offset_cross_entropy(scores, labels, offset=99.9, temperature=0.25).item() > 0.1


def test_scores_are_not_changed():
    scores = torch.zeros(2, 3)
    offset_cross_entropy(scores, torch.tensor([0, 1]), offset=1.0, temperature=0.25)

    assert (scores == 0).all()
