"""Certified radii of single images, proven for a network with its weights as they are.

Rounded weights may exceed norm 1 by some 1e-7 a layer, so the radius is divided by a bound of the
network's Lipschitz constant, and what float64 may add to the scores is taken off first:

    radius = (top score - second score - sqrt(2) * score_error) / (sqrt(2) * lipschitz).

The bound is computed from the weights of a network; nothing that a file states about it is used.
See docs/soundness.md.
"""

import math
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from aol.certification.bounds import EPS, Reach
from aol.certification.chain import ProvenLayer, check_chain, device_of, exact_copy, prove_chain

BATCH = 250
DECIMALS = 6  # of a printed radius
SLACK = 1e-9  # relative, for the roundings of these formulas themselves: thousands of 2**-53
SMALLEST = 1e-100  # of a bound that is divided by: a constant network has 0


@dataclass(frozen=True)
class Proof:
    """Bounds that hold for every image of a known size, in L2.

    `lipschitz` bounds how much the network stretches a difference, `score_error` how far its
    scores in float64 are from the exact ones.
    """

    lipschitz: float
    score_error: float


@dataclass(frozen=True)
class Certifier:
    """A plain network in float64 with its proof for pixels in [0, 1]."""

    network: nn.Sequential
    proof: Proof

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each image's class, and the radius within which no change of it alters the class.

        The radius is 0 where nothing is certified: at a tie, or a gap as small as the rounding.

        Shapes: (N, 3, 32, 32) uint8 -> (N,) int64, (N,) float64, on the CPU.
        Raises: ValueError if a score is not finite.
        """
        batches = (batch.double() / 255 for batch in pixels.split(BATCH))
        scores = _finite_scores(self.network, batches).cpu()
        return scores.argmax(1), radii(scores, self.proof)


@torch.no_grad()
def certified_radius(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the L2 radius within which no change of each image makes `network` misclassify it.

    In the images' own units, whatever their range: the error of the scores is bounded for images
    as large as those given. 0 where an image is misclassified or its score tied. The radius is
    that of the weights that `network` applies, in exact arithmetic; it is computed in float64.
    Divide pixels as in training, since the radius scales with them. Bounds that modules declare
    are not checked.

    Shapes: (N, ...) of a floating type, (N,) integers -> (N,) float64, on the images' device.
    Raises: ValueError for a module without a known bound, images or labels of another shape or
        type, and scores that are not finite.
    Source: arXiv:2208.03160, the margin over sqrt(2); see the head of this module.
    """
    _check_batch(images, labels)
    check_chain(network)
    exact, exactly = exact_copy(network), images.detach().double()
    sizes = exactly.flatten(1).norm(dim=1) * (1 + EPS * (exactly[:1].numel() + 8))
    largest = Reach(max(sizes.tolist(), default=0.0), 0.0)
    proof = _conclude(prove_chain(exact, images.shape[1:], largest), largest)
    scores = _finite_scores(exact, exactly.split(BATCH)).to(images.device)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(
            f"certified_radius: the network's output has shape {tuple(scores.shape)}; it has to "
            "be (images, classes) with two classes or more"
        )
    right = scores.argmax(1) == labels.to(images.device)
    return torch.where(right, radii(scores, proof), 0.0)


def _check_batch(images: Tensor, labels: Tensor) -> None:
    if not images.is_floating_point() or images.ndim < 2:
        raise ValueError(
            f"certified_radius: images have a floating type and shape (N, ...), got {images.dtype} "
            f"{tuple(images.shape)}; convert pixels as for training, e.g. images.float() / 255"
        )
    whole = not labels.is_floating_point() and labels.dtype != torch.bool
    if not whole or labels.shape != images.shape[:1]:
        raise ValueError(
            f"certified_radius: labels are one integer per image, ({len(images)},), got "
            f"{labels.dtype} {tuple(labels.shape)}"
        )


def radii(scores: Tensor, proof: Proof) -> Tensor:
    """Return the certified radius of each row of float64 scores, rounded down.

    Shapes: (N, C) -> (N,).
    """
    best = scores.topk(2, dim=1).values
    gap = (best[:, 0] - best[:, 1]) * (1 - SLACK) - math.sqrt(2) * proof.score_error
    price = math.sqrt(2) * max(proof.lipschitz, SMALLEST)
    return (gap / price * (1 - SLACK)).clamp(min=0)


def floor_radius(radius: float) -> float:
    """Return a radius with as many decimals as are printed, rounded down."""
    steps = 10.0**DECIMALS
    return math.floor(radius * (1 - 4 * EPS) * steps) / steps


def make_certifier(
    network: nn.Sequential, divisors: Sequence[Tensor], device: torch.device
) -> Certifier:
    """Return the network ready for images. Raises: ValueError if a layer has no known bound."""
    exact = deepcopy(network).double().eval().requires_grad_(False).to(device)
    return Certifier(exact, prove_bound(exact, divisors))


@torch.no_grad()
def prove_bound(
    network: nn.Module, divisors: Sequence[Tensor], shape: Sequence[int] = (3, 32, 32)
) -> Proof:
    """Return the proof for a plain float64 network with its weights as they are.

    `divisors` per layer with weights only make it tight, see `aol.certification.bounds`.

    Raises: ValueError if a layer has no known bound.
    """
    reach = Reach.of_images(shape)
    proof = _conclude(prove_chain(network, shape, reach, divisors), reach)
    return replace(proof, lipschitz=max(1.0, proof.lipschitz))


def _conclude(layers: Sequence[ProvenLayer], images: Reach) -> Proof:
    lipschitz = math.prod(layer.upper for layer in layers)
    if not math.isfinite(lipschitz):
        raise ValueError("its weights are not finite")
    scores = layers[-1].reach if layers else images
    return Proof(lipschitz * (1 + SLACK), scores.error * (1 + SLACK))


def _finite_scores(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Return the scores of float64 images. Raises: ValueError if one is not finite."""
    device = device_of(network)
    scores = torch.cat([network(batch.to(device)) for batch in batches])
    if not bool(scores.isfinite().all()):
        raise ValueError("its scores are not finite: the weights are damaged or diverged")
    return scores
