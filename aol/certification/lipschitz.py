"""The soundness gate: are the layers, and the network, 1-Lipschitz in L2 as they stand?

From above, a proof (`aol.certification.bounds`). With q_i what the layer divided input channel i of
its raw parameter by, its bound is the paper's and below 1.

From below, a search: power iteration on each layer as it runs, and gradient ascent over pairs of
inputs of the whole network. What a search finds is real; what it does not find proves nothing.

What it all means is in docs/soundness.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aol.certification.bounds import Reach, upper_bound
from aol.certification.certificate import TOLERANCE, LayerBound, LipschitzCertificate
from aol.layers.modules import (
    AOLConv2d,
    AOLLinear,
    ConcatenationPooling,
    MaxMin,
    in_float64,
)
from aol.layers.plain import FirstChannels, Flatten

TINY = 1e-300  # keeps 0 / 0 at 0
NEVER_STRETCH = (MaxMin, ConcatenationPooling, FirstChannels, Flatten)
DISTANCES = (-2.0, 1.0)  # of the pairs, powers of ten; an image has a norm of some 30
PAIR_STEP = 1.0  # how far a step moves a pair


def certify_network(
    model: nn.Sequential,
    shape: tuple[int, ...],
    *,
    iterations: int = 30,
    restarts: int = 4,
    steps: int = 20,
    tolerance: float = TOLERANCE,
) -> LipschitzCertificate:
    """What can be proven and found of a chain of layers, as it stands; repeating it is exact.

    `iterations` of power iteration per layer, `steps` of ascent from `restarts` pairs: a large
    network may have fewer. The weights are those `model` applies, in its own precision; all else
    is in float64.

    Shapes: `shape` is that of one input, (3, 32, 32) for the paper's networks.
    Raises: ValueError if a module has no known bound.
    """
    _check_known(model)
    chain = in_float64(model)
    generator = torch.Generator().manual_seed(0)
    reach = Reach.of_images(shape)
    x = torch.zeros(1, *shape, dtype=torch.float64, device=_device(chain))
    bounds = []
    for name, layer in _places(chain):
        y = _apply(layer, x)
        if isinstance(layer, AOLConv2d | AOLLinear):
            upper = upper_bound(layer.rescaled(), layer.weight.detach())
            lower = largest_stretch(layer, _normal(x.shape, generator, x.device), iterations)
            bounds.append(LayerBound(f"layer {name} ({type(layer).__name__})", upper, lower))
            reach = reach.after(layer.rescaled(), layer.bias, upper, y.shape[2:].numel())
        x = y
    ratio = _steepest_pair(chain, shape, restarts=restarts, steps=steps, generator=generator)
    return LipschitzCertificate(tuple(bounds), ratio, reach.error, tolerance)


def _places(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers with their names in the order of a pass; one that occurs twice is there twice."""
    modules = model.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in modules if name and "." not in name]


def _check_known(model: nn.Sequential) -> None:
    for name, layer in _places(model):
        if not isinstance(layer, (AOLConv2d, AOLLinear, *NEVER_STRETCH)):
            raise ValueError(
                f"layer {name} is {type(layer).__name__}, which has no known Lipschitz bound: use "
                "the layers of aol.layers, or prove it 1-Lipschitz and name it in NEVER_STRETCH"
            )


def largest_stretch(layer: nn.Module, x: Tensor, iterations: int) -> float:
    """The largest |A x| / |x| that power iteration finds from `x`, A the layer without its bias.

    A lower bound of the norm of A on inputs of this size, with the layer's own padding.
    """
    largest = torch.zeros((), dtype=x.dtype, device=x.device)
    rest = _apply(layer, torch.zeros_like(x))
    for _ in range(iterations):
        x = _unit(x).requires_grad_()
        y = layer(x) - rest
        largest = torch.maximum(largest, y.detach().norm() / x.detach().norm().clamp(min=TINY))
        (x,) = torch.autograd.grad(y.square().sum(), x)  # the adjoint of A, applied to A x
    return float(largest)


def _steepest_pair(
    chain: nn.Module,
    shape: tuple[int, ...],
    *,
    restarts: int,
    steps: int,
    generator: torch.Generator,
) -> float:
    """The largest |f(x) - f(y)| / |x - y| that gradient ascent finds.

    The difference takes the gradient's direction at its own length, as power iteration does; the
    pair itself moves along the gradient.
    """
    device = _device(chain)
    x = torch.rand((restarts, *shape), generator=generator, dtype=torch.float64).to(device)
    change = _normal(x.shape, generator, device)
    length = torch.logspace(*DISTANCES, restarts, dtype=torch.float64, device=device)
    largest = torch.zeros((), dtype=torch.float64, device=device)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        y = (x + _unit(change) * length.view(-1, *[1] * len(shape))).detach().requires_grad_()
        stretched = (chain(y) - chain(x)).flatten(1).norm(dim=1)
        ratio = stretched.detach() / (y - x).detach().flatten(1).norm(dim=1).clamp(min=TINY)
        largest = torch.maximum(largest, ratio.max())
        pull, change = torch.autograd.grad(stretched.sum(), (x, y))
        x = x + PAIR_STEP * _unit(pull + change)
    return float(largest)


def _normal(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def _unit(x: Tensor) -> Tensor:
    """Each row at length 1; zeros stay."""
    unit: Tensor = F.normalize(x.detach().flatten(1), eps=TINY).view_as(x)
    return unit


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        y: Tensor = layer(x)
    return y


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
