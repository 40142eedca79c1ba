"""What the paper's tables report, one value per row of scores, and the margins behind it."""

import math
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["L1", "L2", "Linf"]
# How far a margin moves per unit of radius where input and scores are measured in this norm: the
# most that x_t - x_j can be for a vector x of norm 1.
PRICES: dict[Norm, float] = {"L1": 1.0, "L2": math.sqrt(2), "Linf": 2.0}


def correct(scores: Tensor, labels: Tensor) -> Tensor:
    """Which rows are classified correctly; among equal scores the lowest class counts.

    A row of NaN "predicts" class 0: who calls this in every step looks at the losses instead.
    Shapes: scores (N, C), labels (N,) int64 -> (N,) bool.
    """
    return scores.argmax(1) == labels


def certified(scores: Tensor, labels: Tensor, radius: float, *, norm: Norm = "L2") -> Tensor:
    """Which rows no change of the input up to `radius` can flip, for a 1-Lipschitz network.

    The row is still classified correctly after sqrt(2) * radius is taken from its true class's
    score, the paper's definition of certified robust accuracy (CRA). `radius` is in units of
    the input, pixels in [0, 1]. Our layers are 1-Lipschitz in L2, the paper's norm; what another
    norm costs is here for networks that are 1-Lipschitz in it.

    Shapes: scores (N, C), labels (N,) int64 -> (N,) bool.
    Raises: ValueError if a score is not finite.
    Source: `metrics/` of the authors' code: arg max after the subtraction in the scores' own
        precision, so that ties fall as theirs do (no comparison of margins matches them).
    """
    _check_finite(scores)
    price = torch.zeros_like(scores)
    price.scatter_(1, labels[:, None], PRICES[norm] * radius)
    return correct(scores - price, labels)


def margins(scores: Tensor, labels: Tensor) -> Tensor:
    """Each row's true-class score minus its best other score; negative where it is wrong.

    Shapes: scores (N, C), labels (N,) int64 -> (N,), of the scores' type.
    Raises: ValueError if a score is not finite.
    """
    _check_finite(scores)
    true = scores.gather(1, labels[:, None])[:, 0]
    others = scores.scatter(1, labels[:, None], -math.inf)
    return true - others.amax(1)


def rounded_down(values: Tensor) -> Tensor:
    """The largest float32 numbers that are not above the float64 `values`."""
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
