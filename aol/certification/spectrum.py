"""Measure singular values: of each layer as it is applied, and of the Jacobian at images.

A layer is a linear operator on inputs of its size, with its own padding. A dense layer and a small
convolution have their singular values computed exactly. Those of a large convolution, which would
be a matrix of many thousand rows, are estimated as a density, by stochastic Lanczos quadrature:
the zero padding makes it differ from the circular convolution that a Fourier transform describes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from aol.certification.singular_values import BINS, Spectrum
from aol.layers.modules import AOLConv2d, AOLLinear, in_float64, rescaled_once

EXACT_SIZE = 256  # the largest convolution, in singular values, that is decomposed exactly
PROBES = 4
STEPS = 40  # of Lanczos's method from each probe
JACOBIAN_IMAGES = 32


def layer_spectra(network: nn.Sequential, input_shape: Sequence[int]) -> list[Spectrum]:
    """Return the spectrum of every AOL layer, in float64, in the network's order.

    Shapes: `input_shape` is that of one input, (3, 32, 32) for the paper's networks.
    """
    exact = in_float64(network)
    device = next(exact.parameters()).device
    x = torch.zeros((1, *input_shape), dtype=torch.float64, device=device)
    spectra = []
    for name, layer in exact.named_children():
        with torch.no_grad():
            y = layer(x)
        if isinstance(layer, AOLLinear):
            spectra.append(_exact(f"{name} dense", torch.linalg.svdvals(layer.rescaled())))
        elif isinstance(layer, AOLConv2d):
            spectra.append(_conv_spectrum(name, layer, x.shape[1:], y.shape[1:]))
        x = y
    return spectra


def jacobian_spectrum(network: nn.Module, images: Tensor) -> Spectrum:
    """Return the singular values of the network's Jacobian at each of some images, together.

    Shapes: `images` (N, C, H, W) in the network's dtype; its scores (N, classes).
    """
    x = images.detach().requires_grad_()
    with rescaled_once(network):
        scores = network(x)
        rows = [
            torch.autograd.grad(scores[:, index].sum(), x, retain_graph=True)[0].flatten(1)
            for index in range(scores.shape[1])
        ]
    return _exact("network", torch.linalg.svdvals(torch.stack(rows, dim=1)).flatten())


def _conv_spectrum(
    name: str, layer: AOLConv2d, inputs: Sequence[int], outputs: Sequence[int]
) -> Spectrum:
    weight = layer.rescaled().detach()
    taps = weight.shape[2] * weight.shape[3]
    title = f"{name} conv {weight.shape[2]}x{weight.shape[3]}"
    if taps == 1:  # the same matrix at every position
        values = torch.linalg.svdvals(weight[:, :, 0, 0])
        positions = inputs[1] * inputs[2]
        exact = _exact(title, values)
        return Spectrum(title, exact.size * positions, exact.exact, exact.shares)
    size_in, size_out = (torch.Size(shape).numel() for shape in (inputs, outputs))
    forward, adjoint = _operators(layer, inputs)
    size = min(size_in, size_out)
    if size_in > size_out:  # the smaller of A A' and A' A has no further zeros
        forward, adjoint, inputs = adjoint, forward, outputs
    if size <= EXACT_SIZE:
        identity = torch.eye(size, dtype=torch.float64, device=weight.device)
        rows = forward(identity.view(size, *inputs)).flatten(1)
        return _exact(title, torch.linalg.svdvals(rows))
    shares = torch.zeros(BINS, dtype=torch.float64)
    for nodes, weights in _lanczos(lambda x: adjoint(forward(x)), inputs, weight.device):
        shares += _histogram(nodes.clamp(min=0).sqrt(), weights)
    return Spectrum(title, size, exact=False, shares=tuple((shares / PROBES).tolist()))


Operator = Callable[[Tensor], Tensor]


def _operators(layer: AOLConv2d, inputs: Sequence[int]) -> tuple[Operator, Operator]:
    """Return the layer without its bias and its adjoint, on batches."""

    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            result: Tensor = layer(x) - layer(torch.zeros_like(x[:1]))
            return result

    def adjoint(y: Tensor) -> Tensor:
        x = torch.zeros((len(y), *inputs), dtype=y.dtype, device=y.device, requires_grad=True)
        return torch.autograd.grad(layer(x), x, y)[0]

    return forward, adjoint


def _lanczos(
    square: Operator, shape: Sequence[int], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, per probe, the nodes and weights of its quadrature of the spectrum of `square`.

    Source: S. Ubaru, J. Chen, Y. Saad (2017).
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((PROBES, *shape), generator=generator, dtype=torch.float64).to(device)
    v = start / start.flatten(1).norm(dim=1).view(-1, *[1] * len(shape))
    basis = [v.flatten(1)]
    diagonal, beside = [], []
    for _ in range(STEPS):
        w = square(v).flatten(1)
        diagonal.append((w * basis[-1]).sum(1))
        stacked = torch.stack(basis, dim=1)
        for _ in range(2):  # twice is enough: without it, converged values return as ghosts
            w = w - torch.einsum("pk,pkn->pn", torch.einsum("pkn,pn->pk", stacked, w), stacked)
        length = w.norm(dim=1)
        beside.append(length)
        w = w / length.clamp(min=1e-300)[:, None]
        basis.append(w)
        v = w.view(PROBES, *shape)
    for probe in range(PROBES):
        alpha = torch.stack([one[probe] for one in diagonal]).cpu()
        beta = torch.stack([one[probe] for one in beside[:-1]]).cpu()
        nodes, vectors = torch.linalg.eigh(
            torch.diag(alpha) + torch.diag(beta, 1) + torch.diag(beta, -1)
        )
        yield nodes, vectors[0].square()


def _exact(name: str, values: Tensor) -> Spectrum:
    values = values.detach().double().cpu()
    shares = _histogram(values, torch.full_like(values, 1 / len(values)))
    return Spectrum(name, len(values), exact=True, shares=tuple(shares.tolist()))


def _histogram(values: Tensor, weights: Tensor) -> Tensor:
    bins = (values * BINS + 1e-9).long().clamp(max=BINS - 1)  # 0.9 itself is above 0.9
    return torch.zeros(BINS, dtype=torch.float64).index_add_(0, bins, weights)
