"""The metrics of the paper's tables, one value per row of scores, and the margins behind them."""

import math

import torch
from torch import Tensor


def correct(scores: Tensor, labels: Tensor) -> Tensor:
    """Return which rows are classified correctly; among equal scores the lowest class counts.

    A row of NaN "predicts" class 0: check the losses where this is called in every step.
    Shapes: scores (N, C), labels (N,) int64 -> (N,) bool.
    """
    return scores.argmax(1) == labels


def certified(scores: Tensor, labels: Tensor, radius: float) -> Tensor:
    """Return which rows no L2 change of the input up to `radius` can flip.

    Assumes a 1-Lipschitz network. A row is certified if it is still classified correctly after
    sqrt(2) * radius is subtracted from its true class's score, the paper's definition of certified
    robust accuracy (CRA). `radius` is in units of the input, pixels in [0, 1].

    Shapes: scores (N, C), labels (N,) int64 -> (N,) bool.
    Raises: ValueError if a score is not finite.
    Source: `metrics/` of the authors' code: arg max after the subtraction in the scores' own
        precision, so that ties are decided as theirs are (no comparison of margins matches them).
    """
    _check_finite(scores)
    penalty = torch.zeros_like(scores)
    penalty.scatter_(1, labels[:, None], math.sqrt(2) * radius)
    return correct(scores - penalty, labels)


def margins(scores: Tensor, labels: Tensor) -> Tensor:
    """Return each row's true-class score minus its best other score; negative where it is wrong.

    Shapes: scores (N, C), labels (N,) int64 -> (N,), of the scores' type.
    Raises: ValueError if a score is not finite.
    """
    _check_finite(scores)
    true = scores.gather(1, labels[:, None])[:, 0]
    others = scores.scatter(1, labels[:, None], -math.inf)
    return true - others.amax(1)


def round_down(values: Tensor) -> Tensor:
    """Return the largest float32 numbers that are not above the float64 `values`."""
    nearest = values.float()
    below = torch.nextafter(nearest, torch.full_like(nearest, -math.inf))
    return torch.where(nearest.double() > values, below, nearest)


def _check_finite(scores: Tensor) -> None:
    finite = scores.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0, 0])
        raise ValueError(
            f"scores of row {row} are not finite, and nothing can be certified from them; "
            "the network diverged or its input is not finite"
        )
