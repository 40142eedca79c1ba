"""Rules: what is proven of the modules without weights, each with its proof.

A module is recognised by its class's `forward`, so that a subclass with another one is not taken
for what it inherits from; see `aol.layers.parametrization.forward_of`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from aol.certification.bounds import EPS, Reach
from aol.layers import plain
from aol.layers.modules import MaxMin, as_pair

LIBRARY = 4 * EPS  # relative error of a function such as tanh, some units in the last place
POOLED = (
    2,
    3,
)  # dimensions of a pool's input: without the channels, torch takes the batch for them
LARGEST_JUMP = 1e-8  # of nn.Softplus at its threshold; 2e-9 with the defaults of torch


class UnprovenError(ValueError):
    """Raised when options of a module have no proven bound; holds the reason."""


@dataclass(frozen=True)
class Rule:
    """Facts about a module without weights, in L2.

    `upper` bounds how much it stretches a difference, `rounding` the error of float64 per length
    of an input, `at_zero` the size of each output entry for zeros, `entry_error` its error.
    `dimensions` are the fewest and the most that one input has, without the one of the batch.
    """

    upper: float = 1.0
    rounding: float = 0.0
    at_zero: float = 0.0
    entry_error: float = 0.0
    dimensions: tuple[int, float] = (1, math.inf)

    def after(self, reach: Reach, entries: int) -> Reach:
        """Return the reach behind the module, whose output has `entries` entries."""
        given, root = reach.size + reach.error, math.sqrt(entries)
        error = self.upper * reach.error + self.rounding * given + self.entry_error * root
        return Reach(self.upper * reach.size + self.at_zero * root, error)


def _exact(module: nn.Module) -> Rule:
    """Move, drop or order values: no difference grows, nothing is rounded."""
    return Rule()


def _exact_on_images(module: nn.Module) -> Rule:
    """Move values of images (channels, height, width)."""
    return Rule(dimensions=(3, 3))


def _pixel_unshuffle(module: nn.PixelUnshuffle) -> Rule:
    """Move values; dimensions before those of an image stay."""
    return Rule(dimensions=(3, math.inf))


def _constant_pad(module: Any) -> Rule:
    """Add entries that are the same for every input; nn.ZeroPad2d is the case of zeros."""
    padded = len(module.padding) // 2
    return Rule(at_zero=abs(float(module.value)), dimensions=(padded, math.inf))


def _flatten(module: nn.Flatten) -> Rule:
    if module.start_dim < 1:
        raise UnprovenError(f"start_dim must be 1 or more, got {module.start_dim}")
    return Rule(dimensions=(module.start_dim, math.inf))


def _dropout(module: nn.Dropout) -> Rule:
    """Do nothing in evaluation; in training the rest is scaled up by 1 / (1 - p)."""
    if module.training:
        raise UnprovenError("it is random in training mode; call .eval() on the network")
    return Rule()


def _leaky_relu(module: nn.LeakyReLU) -> Rule:
    """Multiply each entry by 1 or the slope: the larger size of both bounds the derivative."""
    if not abs(module.negative_slope) <= 1:
        raise UnprovenError(f"the slope must be between -1 and 1, got {module.negative_slope}")
    return Rule(rounding=EPS)


def _tanh(module: nn.Tanh) -> Rule:
    """Map each entry with a derivative in (0, 1] and |tanh x| <= |x|."""
    return Rule(rounding=LIBRARY)


def _softplus(module: nn.Softplus) -> Rule:
    """Map each entry with a derivative in (0, 1), that of log(1 + exp(beta x)) / beta.

    Above its threshold torch returns x itself, which is off by log(1 + exp(-threshold)) / beta:
    an error of the entry, and of more than rounding, so that it has to be small.
    """
    beta, threshold = module.beta, module.threshold
    if not 0 < beta < math.inf or not threshold > 0:
        raise UnprovenError(f"beta and threshold must be above 0, got {beta} and {threshold}")
    jump = math.log1p(math.exp(-threshold)) / beta
    if not jump <= LARGEST_JUMP:
        raise UnprovenError(f"it jumps by {jump:.3g} at its threshold; raise the threshold to 20")
    # beta x, exp, log1p and the division are off by LIBRARY each, exp by |beta x| times more.
    at_zero = math.log(2) / beta
    return Rule(rounding=4 * LIBRARY, at_zero=at_zero, entry_error=jump + 4 * LIBRARY * at_zero)


def _avg_pool(module: nn.AvgPool2d) -> Rule:
    """Average windows of n entries that share none: by Cauchy and Schwarz a norm of 1 / sqrt(n)."""
    _check_windows(module)
    if module.ceil_mode or module.divisor_override is not None:
        raise UnprovenError("ceil_mode and divisor_override have no proven bound; leave them out")
    rows, columns = as_pair(module.kernel_size)
    count = rows * columns
    upper = 1 / math.sqrt(count) * (1 + EPS)
    return Rule(upper=upper, rounding=EPS * (count + 1), dimensions=POOLED)


def _max_pool(module: nn.MaxPool2d) -> Rule:
    """Take the largest entry of windows that share none.

    Two largest values differ by no more than the entries of the window do at most, which is no
    more than the length of the difference there.
    """
    _check_windows(module)
    if as_pair(module.dilation) != (1, 1) or module.return_indices:
        raise UnprovenError("dilation and return_indices have no proven bound; leave them out")
    return Rule(dimensions=POOLED)


def _check_windows(module: nn.AvgPool2d | nn.MaxPool2d) -> None:
    sizes, strides = as_pair(module.kernel_size), as_pair(module.stride)
    if any(stride < size for stride, size in zip(strides, sizes, strict=True)):
        raise UnprovenError(f"windows of {sizes} overlap at stride {strides}; use stride {sizes}")
    if as_pair(module.padding) != (0, 0):
        raise UnprovenError("padding has no proven bound; put nn.ZeroPad2d before it")


RULES: dict[Callable[..., Any] | None, Callable[[Any], Rule]] = {
    MaxMin.forward: _exact,
    plain.MaxMin.forward: _exact,
    plain.ConcatenationPooling.forward: _exact_on_images,
    plain.FirstChannels.forward: _exact,
    plain.Flatten.forward: _exact_on_images,
    nn.Identity.forward: _exact,
    nn.ReLU.forward: _exact,
    nn.PixelUnshuffle.forward: _pixel_unshuffle,
    nn.ZeroPad2d.forward: _constant_pad,
    nn.Flatten.forward: _flatten,
    nn.Dropout.forward: _dropout,
    nn.LeakyReLU.forward: _leaky_relu,
    nn.Tanh.forward: _tanh,
    nn.Softplus.forward: _softplus,
    nn.AvgPool2d.forward: _avg_pool,
    nn.MaxPool2d.forward: _max_pool,
}
