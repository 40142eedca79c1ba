"""The paper's theorem: scale the input channels of a kernel so that its layer is 1-Lipschitz.

For a kernel P (O, I, K, L) the Gram kernel V has one I x I matrix per displacement (y, x),

    V_ij(y, x) = sum over output channels and taps of P_i(tap) * P_j(tap + (y, x)),

and scale_i = (sum over j, y, x of |V_ij(y, x)| + EPS) ** -1/2. A dense layer has one tap.
V_ij(y, x) = V_ji(-y, -x), so the displacements of one half-plane are enough: V is kept as one
buffer with a matrix for (0, 0) and one per displacement of the half-plane, and each of them is
a single matrix product. The gradient is written by hand (`_Rescale`): with r the scale and
g = -1/2 * r**3 * sum(upstream * P), every |V_ij| pulls on P with weight sign(V_ij) * (g_i + g_j).

Shape letters: O output channels, I input channels, K x L taps.
Source: arXiv:2208.03160, theorem for dense layers and for convolutions.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-6  # keeps the scale of an all-zero input channel finite; the authors' value

Window = tuple[slice, slice]


def _half_plane(rows: int, columns: int) -> list[tuple[Window, Window]]:
    """Per displacement after (0, 0) in reading order: the taps that meet, before and after."""
    pairs = []
    for y in range(rows):
        for x in range(-columns + 1, columns):
            if (y, x) <= (0, 0):
                continue
            first, last = max(0, -x), columns - max(0, x)
            before = (slice(0, rows - y), slice(first, last))
            after = (slice(y, rows), slice(first + x, last + x))
            pairs.append((before, after))
    return pairs


def _rows(taps_KLOI: Tensor) -> Tensor:
    """All taps and outputs as the rows of one matrix with a column per input channel."""
    return taps_KLOI.reshape(-1, taps_KLOI.shape[-1])


def _gram(taps_KLOI: Tensor) -> Tensor:
    """The Gram kernel on the half-plane, (displacements, I, I), (0, 0) first."""
    rows, columns, _, inputs = taps_KLOI.shape
    pairs = _half_plane(rows, columns)
    gram = taps_KLOI.new_empty(1 + len(pairs), inputs, inputs)
    every = _rows(taps_KLOI)
    torch.mm(every.T, every, out=gram[0])
    for slot, (before, after) in zip(gram[1:], pairs, strict=True):
        torch.mm(_rows(taps_KLOI[before]).T, _rows(taps_KLOI[after]), out=slot)
    return gram


def _scale(gram: Tensor) -> Tensor:
    """Each input channel's scale, (I,), from the Gram kernel on the half-plane."""
    sizes = gram.abs()
    total = sizes.sum((0, 2))
    if len(sizes) > 1:
        total = total + sizes[1:].sum((0, 1))
    return (total + EPS).rsqrt()


class _Rescale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor) -> Tensor:
        taps_KLOI = kernel.permute(2, 3, 0, 1).contiguous()
        gram = _gram(taps_KLOI)
        scale = _scale(gram)
        ctx.save_for_backward(kernel, taps_KLOI, gram, scale)
        return kernel * scale[:, None, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        kernel, taps_KLOI, gram, scale = ctx.saved_tensors
        rows, columns = taps_KLOI.shape[:2]
        pull = -0.5 * scale**3 * (upstream * kernel).sum((0, 2, 3))
        weights = gram.sign().mul_(pull[:, None] + pull[None, :])
        gradient = (_rows(taps_KLOI) @ weights[0]).view_as(taps_KLOI)
        for weight, (before, after) in zip(weights[1:], _half_plane(rows, columns), strict=True):
            x, y = taps_KLOI[before], taps_KLOI[after]
            gradient[before] += (_rows(y) @ weight.T).view(x.shape)
            gradient[after] += (_rows(x) @ weight).view(y.shape)
        return torch.addcmul(gradient.permute(2, 3, 0, 1), upstream, scale[:, None, None])


def rescale_conv(kernel: Tensor) -> Tensor:
    """The kernel whose stride-1, zero-padded convolution is 1-Lipschitz in L2.

    Differentiable once, in the kernel's own precision also under autocast: the scale is the
    certificate. Shapes: (O, I, K, L) -> (O, I, K, L).
    """
    device = kernel.device.type
    autocast_off: AbstractContextManager[object] = nullcontext()
    if torch.amp.autocast_mode.is_autocast_available(device):
        autocast_off = torch.autocast(device, enabled=False)
    with autocast_off:
        rescaled: Tensor = _Rescale.apply(kernel)
    return rescaled


def rescale_dense(matrix: Tensor) -> Tensor:
    """The matrix whose linear map is 1-Lipschitz in L2. Shapes: (O, I) -> (O, I)."""
    return rescale_conv(matrix[:, :, None, None])[:, :, 0, 0]


def conv_scale(kernel: Tensor) -> Tensor:
    """The scale of each input channel of a convolution. Shapes: (O, I, K, L) -> (I,)."""
    return _scale(_gram(kernel.permute(2, 3, 0, 1).contiguous()))


def rescale_flop(kernel: Tensor) -> int:
    """Floating-point operations of the products of one rescaling with its backward.

    Shapes: (O, I, K, L), or (O, I) for a dense layer.
    """
    outputs, inputs = kernel.shape[:2]
    rows, columns = kernel.shape[2:] or (1, 1)
    meeting = [
        (rows - y) * (columns - abs(x))
        for y in range(rows)
        for x in range(-columns + 1, columns)
        if (y, x) > (0, 0)
    ]
    products = 2 * rows * columns + 3 * sum(meeting)  # forward, and one or two backward
    return int(2 * inputs**2 * outputs * products)
