"""The proof from above: bounds of layers' norms and of the rounding error of float64 scores.

Whatever the positive numbers q_i, a stride-1, zero-padded convolution with weight W has a norm of
at most

    max over i of sqrt(sum over j, y, x of |V_ij(y, x)| * q_j / q_i),   V the Gram kernel of W.

It is computed in float64 from the weight that the layer applies, by other code than the
rescaling, and a bound of its own rounding error is added.

Source: arXiv:2208.03160 for the bound; docs/soundness.md has the proof with the numbers q_i.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps  # twice the largest relative error of one operation


ITERATIONS = 200  # of power iteration for the numbers q; each costs one product with a vector
SMALLEST = 1e-12  # of the numbers q, of the largest one
GAIN = 1e-10  # relative; iteration ends where the bound falls by less


@dataclass(frozen=True)
class Reach:
    """The largest input of a layer, and the largest error of float64 there (L2)."""

    size: float
    error: float

    @classmethod
    def of_images(cls, shape: Sequence[int]) -> "Reach":
        """Return the reach of images with pixels in [0, 1]; none is larger than a white one.

        Raises: ValueError if `shape` is not that of an image.
        """
        if not shape or min(shape) < 1:
            raise ValueError(
                f"the shape of one input must have at least one dimension and no size below 1, as "
                f"(3, 32, 32) does, got {tuple(shape)}"
            )
        size = math.sqrt(math.prod(shape))
        return cls(size, EPS * size)

    def after(self, weight: Tensor, bias: Tensor | None, upper: float, positions: int) -> "Reach":
        """Return the reach behind a layer of norm `upper` at most.

        `positions` is the number of places of the output that have a value per channel.

        Shapes: weight (O, I, K, L) or (O, I), bias (O,).
        """
        offset = 0.0 if bias is None else float(bias.detach().norm()) * math.sqrt(positions)
        rounding = _sum_error(weight, self.size + self.error, offset)
        return Reach(upper * self.size + offset, upper * self.error + rounding)


def upper_bound(weight: Tensor, raw: Tensor | None = None) -> float:
    """Return a proven bound of the L2 norm of a stride-1, zero-padded convolution or dense layer.

    `raw` is the parameter that `weight` was rescaled from. It only makes the bound tight: any
    other tensor gives a larger one. Without it the numbers q are searched for, also for the
    adjoint, whose norm is the same.

    Shapes: both (O, I, K, L), or (O, I).
    """
    if raw is not None:
        return weighted_bound(weight, divisors(weight, raw))
    sides = (weight.detach(), weight.detach().transpose(0, 1))
    return min(weighted_bound(side, tight_divisors(side)) for side in sides)


def divisors(weight: Tensor, raw: Tensor) -> Tensor:
    """Return the number that each input channel of `raw` was divided by, 1 for a dead one.

    Shapes: (O, I, ...) -> (I,) float64.
    """
    divided = _channel_norms(raw) / _channel_norms(weight)
    return torch.where((divided > 0) & divided.isfinite(), divided, 1.0)


def tight_divisors(weight: Tensor) -> Tensor:
    """Return numbers q for a tight bound of any weight, by power iteration.

    The bound's square is the largest entry of S q / q, S the channels' sums of |V|. Its least
    value, for the Perron vector q, is the largest eigenvalue of S (Collatz and Wielandt), and
    power iteration never raises it.

    Shapes: (O, I, K, L) or (O, I) -> (I,) float64.
    """
    grams = _grams(weight)
    sums = next(grams).abs()
    for gram in grams:
        sums += gram.abs()
    best, least = torch.ones_like(sums[0]), math.inf
    q = best
    for _ in range(ITERATIONS):
        stretched = sums @ q
        bound = float((stretched / q).max())
        if not bound < least * (1 - GAIN):
            break
        best, least = q, bound
        q = (stretched / stretched.max()).clamp(min=SMALLEST)
    return best


def weighted_bound(weight: Tensor, q: Tensor) -> float:
    """Return the bound with these numbers q: any positive ones prove it, `divisors` tightly.

    Shapes: (O, I, K, L) or (O, I), and (I,) float64.
    """
    outputs, inputs, rows, columns = _with_taps(weight).shape
    sums = torch.zeros_like(q)
    for gram in _grams(weight):
        sums += gram.abs() @ q
    # In any order, a sum of n products is off by n * EPS times the sum of their sizes at most.
    sizes_OI = _with_taps(weight).abs().sum((2, 3))
    sums += EPS * rows * columns * outputs * (sizes_OI.T @ (sizes_OI @ q))
    additions = 4 * rows * columns * (inputs + outputs)
    return float(((sums / q).max() * (1 + EPS * (additions + 8))).sqrt() * (1 + EPS))


def _grams(weight: Tensor) -> Iterator[Tensor]:
    """Yield V at every displacement of the whole plane. Shapes: each (I, I) float64."""
    taps_KLOI = _with_taps(weight).permute(2, 3, 0, 1)
    rows, columns, _, inputs = taps_KLOI.shape
    for y in range(1 - rows, rows):
        for x in range(1 - columns, columns):
            before = taps_KLOI[max(0, -y) : rows - max(0, y), max(0, -x) : columns - max(0, x)]
            after = taps_KLOI[max(0, y) : rows + min(0, y), max(0, x) : columns + min(0, x)]
            yield before.reshape(-1, inputs).T @ after.reshape(-1, inputs)


def _sum_error(weight: Tensor, reach: float, offset: float) -> float:
    """Return how far (L2) a layer's sums of products may be off for inputs up to `reach`."""
    sizes = _with_taps(weight).abs()
    largest = sizes.sum((0, 2, 3)).max() * sizes.sum((1, 2, 3)).max()  # squared norm of |weight|
    return EPS * (weight[0].numel() + 1) * (math.sqrt(largest) * reach + offset)


def _channel_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight.double().transpose(0, 1).flatten(1), dim=1)
    return norms


def _with_taps(weight: Tensor) -> Tensor:
    return weight.double().reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
