"""The proof from above: bounds of layers' norms, and of what float64 adds to scores.

Whatever the positive numbers q_i, a stride-1, zero-padded convolution with weight W has a norm of
at most

    max over i of sqrt(sum over j, y, x of |V_ij(y, x)| * q_j / q_i),   V the Gram kernel of W.

It is computed in float64 from the weight that the layer applies, by other code than the
rescaling, and a bound of its own rounding error is added.

Source: arXiv:2208.03160 for the bound; docs/soundness.md has the proof with the numbers q_i.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps  # twice the largest relative error of one operation


@dataclass(frozen=True)
class Reach:
    """At some layer of a chain: how large its input can be, and how far float64 may be off (L2)."""

    size: float
    error: float

    @classmethod
    def of_images(cls, shape: Sequence[int]) -> "Reach":
        """What images with pixels in [0, 1] can be; no image is larger than a white one."""
        size = math.sqrt(math.prod(shape))
        return cls(size, EPS * size)

    def after(self, weight: Tensor, bias: Tensor, upper: float, positions: int) -> "Reach":
        """Behind a layer of norm `upper` at most, whose output has so many positions."""
        offset = float(bias.detach().norm()) * math.sqrt(positions)
        rounding = _sum_error(weight, self.size + self.error, offset)
        return Reach(upper * self.size + offset, upper * self.error + rounding)


def upper_bound(weight: Tensor, raw: Tensor) -> float:
    """A proven bound of the L2 norm of a stride-1, zero-padded convolution or a dense layer.

    `raw` is the parameter that `weight` was rescaled from. It only makes the bound tight: any
    other tensor gives a larger one.

    Shapes: both (O, I, K, L), or (O, I).
    """
    return weighted_bound(weight, divisors(weight, raw))


def divisors(weight: Tensor, raw: Tensor) -> Tensor:
    """What each input channel of `raw` was divided by to become `weight`, 1 for a dead one.

    Shapes: (O, I, ...) -> (I,) float64.
    """
    divided = _channel_norms(raw) / _channel_norms(weight)
    return torch.where((divided > 0) & divided.isfinite(), divided, 1.0)


def weighted_bound(weight: Tensor, q: Tensor) -> float:
    """The bound with these numbers q; any positive ones give a proof, `divisors` a tight one.

    Shapes: (O, I, K, L) or (O, I), and (I,) float64.
    """
    taps_KLOI = _with_taps(weight).permute(2, 3, 0, 1)
    rows, columns, outputs, inputs = taps_KLOI.shape
    sums = torch.zeros_like(q)
    for y in range(1 - rows, rows):
        for x in range(1 - columns, columns):
            before = taps_KLOI[max(0, -y) : rows - max(0, y), max(0, -x) : columns - max(0, x)]
            after = taps_KLOI[max(0, y) : rows + min(0, y), max(0, x) : columns + min(0, x)]
            gram = before.reshape(-1, inputs).T @ after.reshape(-1, inputs)
            sums += gram.abs() @ q
    # In any order, a sum of n products is off by n * EPS times the sum of their sizes at most.
    sizes_OI = taps_KLOI.abs().sum((0, 1))
    sums += EPS * rows * columns * outputs * (sizes_OI.T @ (sizes_OI @ q))
    additions = 4 * rows * columns * (inputs + outputs)
    return float(((sums / q).max() * (1 + EPS * (additions + 8))).sqrt() * (1 + EPS))


def _sum_error(weight: Tensor, reach: float, offset: float) -> float:
    """How far (L2) a layer's sums of products may be off: inputs up to `reach`, biases `offset`."""
    sizes = _with_taps(weight).abs()
    largest = sizes.sum((0, 2, 3)).max() * sizes.sum((1, 2, 3)).max()  # squared norm of |weight|
    return EPS * (weight[0].numel() + 1) * (math.sqrt(largest) * reach + offset)


def _channel_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight.double().transpose(0, 1).flatten(1), dim=1)
    return norms


def _with_taps(weight: Tensor) -> Tensor:
    return weight.double().reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
