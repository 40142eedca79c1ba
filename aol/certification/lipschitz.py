"""The Lipschitz certificate of a network in L2, from its weights as they are.

From above, a proof (`aol.certification.chain`). With q_i what an AOL layer divided input channel i
of its raw parameter by, its bound is the paper's and below 1.

From below, a search: power iteration on each layer as it runs, and gradient ascent over pairs of
inputs of the whole network. A stretch that a search finds is real; finding none proves nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aol.certification.bounds import Reach
from aol.certification.certificate import TOLERANCE, LayerBound, LipschitzCertificate
from aol.certification.chain import check_chain, device_of, exact_copy, prove_chain

TINY = 1e-300  # keeps 0 / 0 at 0
DISTANCES = (-2.0, 1.0)  # of the pairs, powers of ten; an image has a norm of some 30
PAIR_STEP = 1.0  # how far a step moves a pair


def certify_network(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    iterations: int = 30,
    restarts: int = 4,
    steps: int = 20,
    tolerance: float = TOLERANCE,
) -> LipschitzCertificate:
    """Return the Lipschitz certificate (L2) of a network as it is; repeating it is exact.

    A network is any nest of `nn.Sequential` of

    - AOL layers, and layers that `aol.parametrize` changed, which have to have a norm of 1;
    - `nn.Linear` and `nn.Conv2d` with stride 1, one group and zero padding, of any norm;
    - `MaxMin`, `ConcatenationPooling`, `FirstChannels`, `Flatten`, `nn.Flatten`, `nn.Identity`,
      `nn.ReLU`, `nn.LeakyReLU`, `nn.Tanh`, `nn.Softplus`, `nn.PixelUnshuffle`, `nn.ZeroPad2d`,
      `nn.Dropout` in evaluation mode, `nn.AvgPool2d` and `nn.MaxPool2d` without overlaps, none of
      which stretches a difference;
    - modules with a method `lipschitz_bound()`, which returns a bound that its author has proven.
      It is recorded as declared, and looked for contradictions like every other.

    `violations` of the certificate names what contradicts it: an AOL layer with a bound above 1,
    and any layer or pair of inputs that is stretched beyond a bound. A plain layer's bound above 1
    is not a violation; it is a factor of `upper`. `upper` and `ratio` are lengths of a difference
    of outputs per length of the difference of inputs, in the units of each: the bound and the
    largest found. `score_error` is in the units of the outputs, for inputs in [0, 1].

    `iterations` of power iteration per layer, `steps` of ascent from `restarts` pairs: a large
    network may have fewer. The weights are those `network` applies, in its own precision; all else
    is in float64, on the network's device.

    Shapes: `input_shape` is that of one input, (3, 32, 32) for the paper's networks.
    Raises: ValueError that names every module without a known bound.
    Source: arXiv:2208.03160 for the bound of AOL layers and, with other factors, of plain ones.
    """
    check_chain(network)
    exact = exact_copy(network)
    reach = Reach.of_images(input_shape)
    layers = prove_chain(exact, input_shape, reach)
    search = _Search(restarts, steps, device_of(exact), torch.Generator().manual_seed(0))
    bounds = []
    for layer in layers:
        if layer.kind is not None:
            lower = largest_stretch(layer.module, search.normal(layer.shape), iterations)
            if layer.kind == "declared":  # and need not be linear
                lower = max(lower, _steepest_pair(layer.module, layer.shape[1:], search))
            bounds.append(LayerBound(layer.name, layer.upper, lower, layer.kind))
    ratio = _steepest_pair(exact, input_shape, search)
    score_error = layers[-1].reach.error if layers else reach.error
    return LipschitzCertificate(tuple(bounds), ratio, score_error, tolerance)


@dataclass(frozen=True)
class _Search:
    """The number of pairs and of their steps, and the source of their random numbers."""

    restarts: int
    steps: int
    device: torch.device
    generator: torch.Generator

    def normal(self, shape: Sequence[int]) -> Tensor:
        drawn = torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device)

    def uniform(self, shape: Sequence[int]) -> Tensor:
        drawn = torch.rand(tuple(shape), generator=self.generator, dtype=torch.float64)
        return drawn.to(self.device)


def largest_stretch(layer: nn.Module, x: Tensor, iterations: int) -> float:
    """Return the largest |A x| / |x| that power iteration finds from `x`.

    A is the layer without its bias, or its difference from its output for zeros: a lower bound of
    its norm on inputs of this size, with the layer's own padding.
    """
    largest = torch.zeros((), dtype=x.dtype, device=x.device)
    rest = _apply(layer, torch.zeros_like(x))
    for _ in range(iterations):
        x = _unit(x).requires_grad_()
        y = layer(x) - rest
        largest = torch.maximum(largest, y.detach().norm() / x.detach().norm().clamp(min=TINY))
        (x,) = torch.autograd.grad(y.square().sum(), x)  # the adjoint of A, applied to A x
    return float(largest)


def _steepest_pair(chain: nn.Module, shape: Sequence[int], search: _Search) -> float:
    """Return the largest |f(x) - f(y)| / |x - y| that gradient ascent finds.

    The difference takes the gradient's direction at its own length, as power iteration does; the
    pair itself moves along the gradient.
    """
    x = search.uniform((search.restarts, *shape))
    change = search.normal(x.shape)
    length = torch.logspace(*DISTANCES, search.restarts, dtype=torch.float64, device=x.device)
    largest = torch.zeros((), dtype=torch.float64, device=x.device)
    for _ in range(search.steps):
        x = x.detach().requires_grad_()
        y = (x + _unit(change) * length.view(-1, *[1] * len(shape))).detach().requires_grad_()
        stretched = (chain(y) - chain(x)).flatten(1).norm(dim=1)
        ratio = stretched.detach() / (y - x).detach().flatten(1).norm(dim=1).clamp(min=TINY)
        largest = torch.maximum(largest, ratio.max())
        pull, change = torch.autograd.grad(stretched.sum(), (x, y))
        x = x + PAIR_STEP * _unit(pull + change)
    return float(largest)


def _unit(x: Tensor) -> Tensor:
    """Return each row at length 1; zeros stay."""
    unit: Tensor = F.normalize(x.detach().flatten(1), eps=TINY).view_as(x)
    return unit


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = layer(x)
    return y
