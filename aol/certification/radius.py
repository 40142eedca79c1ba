"""Certified radii of single images, proven for a plain network with its weights as they are.

Rounded weights may exceed norm 1 by some 1e-7 a layer, so the radius is divided by a bound of the
network's Lipschitz constant, and what float64 may add to the scores is taken off first:

    radius = (top score - second score - sqrt(2) * score_error) / (sqrt(2) * lipschitz).

Nothing that a file says of itself is believed: the bound is computed from its weights. See
docs/soundness.md.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aol.certification.bounds import EPS, Reach, weighted_bound
from aol.layers.plain import ConcatenationPooling, FirstChannels, Flatten, MaxMin

BATCH = 250
DECIMALS = 6  # of a printed radius
SLACK = 1e-9  # relative, for the roundings of these formulas themselves: thousands of 2**-53
LARGEST_DIVISOR = 1e100
NEVER_STRETCH = (MaxMin, ConcatenationPooling, FirstChannels, Flatten)


@dataclass(frozen=True)
class Proof:
    """What holds for every image with pixels in [0, 1].

    `lipschitz` bounds how much the network stretches a difference (L2), 1 at least;
    `score_error` how far its scores in float64 are from the exact ones (L2).
    """

    lipschitz: float
    score_error: float


@dataclass(frozen=True)
class Certifier:
    """A network in float64 with its proof."""

    network: nn.Sequential
    proof: Proof

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Each image's class, and the radius within which every change of it keeps the class.

        The radius is 0 where nothing is certified: at a tie, or a gap as small as the rounding.

        Shapes: (N, 3, 32, 32) uint8 -> (N,) int64, (N,) float64, on the CPU.
        Raises: ValueError if a score is not finite.
        """
        device = next(self.network.parameters()).device
        batches = [
            self.network(batch.to(device).double() / 255).cpu() for batch in pixels.split(BATCH)
        ]
        scores = torch.cat(batches)
        if not bool(scores.isfinite().all()):
            raise ValueError("its scores are not finite: the weights are damaged or diverged")
        return scores.argmax(1), radii(scores, self.proof)


def radii(scores: Tensor, proof: Proof) -> Tensor:
    """The certified radius of each row of float64 scores, rounded down.

    Shapes: (N, C) -> (N,).
    """
    best = scores.topk(2, dim=1).values
    gap = (best[:, 0] - best[:, 1]) * (1 - SLACK) - math.sqrt(2) * proof.score_error
    return (gap / (math.sqrt(2) * proof.lipschitz) * (1 - SLACK)).clamp(min=0)


def floor_radius(radius: float) -> float:
    """A radius with as many decimals as are printed, and never above it."""
    steps = 10.0**DECIMALS
    return math.floor(radius * (1 - 4 * EPS) * steps) / steps


def make_certifier(
    network: nn.Sequential, divisors: Sequence[Tensor], device: torch.device
) -> Certifier:
    """The network ready to certify images. Raises: ValueError if a layer has no known bound."""
    exact = deepcopy(network).double().eval().requires_grad_(False).to(device)
    return Certifier(exact, prove_bound(exact, divisors))


@torch.no_grad()
def prove_bound(
    network: nn.Sequential, divisors: Sequence[Tensor], shape: Sequence[int] = (3, 32, 32)
) -> Proof:
    """The proof for a plain float64 network with its weights as they are.

    `divisors` per layer with weights only make it tight, see `aol.certification.bounds`.

    Raises: ValueError if a layer has no known bound.
    """
    reach, lipschitz = Reach.of_images(shape), 1.0
    rest = list(divisors)
    x = torch.zeros(1, *shape, dtype=torch.float64, device=next(network.parameters()).device)
    for name, layer in enumerate(network):  # one that occurs twice counts twice
        x = layer(x)
        if isinstance(layer, NEVER_STRETCH):
            continue
        weight, bias = _weights(layer)
        if weight is None or bias is None:
            raise ValueError(f"layer {name}, {layer}, has no known Lipschitz bound")
        if not rest or not _fit(rest[0], weight.shape[1]):
            raise ValueError(f"layer {name}, {layer}, has no positive divisor per input channel")
        upper = weighted_bound(weight, rest.pop(0).to(x))
        reach = reach.after(weight, bias, upper, x.shape[2:].numel())
        lipschitz *= upper
    if not math.isfinite(lipschitz):
        raise ValueError("its weights are not finite")
    return Proof(max(1.0, lipschitz * (1 + SLACK)), reach.error * (1 + SLACK))


def _fit(divisors: Tensor, inputs: int) -> bool:
    """Whether they are a number per input channel, none so small or large that it underflows."""
    inside = (divisors > 1 / LARGEST_DIVISOR) & (divisors < LARGEST_DIVISOR)
    return divisors.shape == (inputs,) and bool(inside.all())


def _weights(layer: nn.Module) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a dense layer, or of a convolution that the bound is proven for."""
    if isinstance(layer, nn.Conv2d):
        proven = (layer.stride, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        return (layer.weight, layer.bias) if proven else (None, None)
    return (layer.weight, layer.bias) if isinstance(layer, nn.Linear) else (None, None)
