"""The Gram kernel of convolution kernels on half a plane of displacements, and its gradient.

For a kernel P (O, I, K, L) the Gram kernel V has one I x I matrix per displacement (y, x),

    V_ij(y, x) = sum over output channels and taps of P_i(tap) * P_j(tap + (y, x)).

V_ij(y, x) = V_ji(-y, -x), so (0, 0) and what follows it in reading order are enough: D matrices,
each of them one matrix product over the taps that meet. A dense layer has one tap and D = 1.
Wide 3 x 3 kernels take even fewer products, see `aol.ops.toom_cook`.

Shape letters: B kernels of one shape, D displacements, O output channels, I input channels,
K x L taps.
"""

import torch
from torch import Tensor

from aol.ops import algorithms
from aol.ops.matmul import batched_products, transposed
from aol.ops.toom_cook import gram_3x3, gram_3x3_gradient

Window = tuple[slice, slice, slice]


def gram(kernels_BOIKL: Tensor) -> Tensor:
    """Return V at the half-plane's displacements, (0, 0) first. Shapes: -> (D, B, I, I)."""
    if _toom_cook(kernels_BOIKL):
        return gram_3x3(transposed(_taps_first(kernels_BOIKL)))
    taps_BKLOI = kernels_BOIKL.permute(0, 3, 4, 1, 2)
    pairs = _half_plane(*kernels_BOIKL.shape[3:])
    count, inputs = kernels_BOIKL.shape[0], kernels_BOIKL.shape[2]
    found = kernels_BOIKL.new_empty(1 + len(pairs), count, inputs, inputs)
    found[0] = symmetric_product(_rows(taps_BKLOI))
    for slot, (before, after) in zip(found[1:], pairs, strict=True):
        torch.bmm(_rows(taps_BKLOI[before]).mT, _rows(taps_BKLOI[after]), out=slot)
    return found


def gram_gradient(kernels_BOIKL: Tensor, weights: Tensor) -> Tensor:
    """Return half the gradient, in the kernels, of the whole plane's sum of `weights` times V.

    `weights` (D, B, I, I) are those of the half-plane, symmetric at (0, 0); the other half's are
    their mirror image. Shapes: -> (B, O, I, K, L).
    """
    if _toom_cook(kernels_BOIKL):
        gradient_TBOI = gram_3x3_gradient(_taps_first(kernels_BOIKL), weights)
        return gradient_TBOI.view(3, 3, *gradient_TBOI.shape[1:]).permute(2, 3, 4, 0, 1)
    taps_BKLOI = kernels_BOIKL.permute(0, 3, 4, 1, 2)
    gradient = (_rows(taps_BKLOI) @ weights[0]).view(taps_BKLOI.shape)
    pairs = _half_plane(*kernels_BOIKL.shape[3:])
    for weight, (before, after) in zip(weights[1:], pairs, strict=True):
        x, y = taps_BKLOI[before], taps_BKLOI[after]
        gradient[before] += (_rows(y) @ weight.mT).view(x.shape)
        gradient[after] += (_rows(x) @ weight).view(y.shape)
    return gradient.permute(0, 3, 4, 1, 2)


def _toom_cook(kernels_BOIKL: Tensor) -> bool:
    return algorithms.takes_toom_cook(*kernels_BOIKL.shape[2:])


def _half_plane(rows: int, columns: int) -> list[tuple[Window, Window]]:
    """Return, per displacement after (0, 0) in reading order, the taps that meet."""
    pairs = []
    for y in range(rows):
        for x in range(-columns + 1, columns):
            if (y, x) <= (0, 0):
                continue
            first, last = max(0, -x), columns - max(0, x)
            before = (slice(None), slice(0, rows - y), slice(first, last))
            after = (slice(None), slice(y, rows), slice(first + x, last + x))
            pairs.append((before, after))
    return pairs


def _rows(taps_BKLOI: Tensor) -> Tensor:
    """Return all taps and outputs as the rows of a matrix with a column per input channel."""
    return taps_BKLOI.flatten(1, 3)


def _taps_first(kernels_BOIKL: Tensor) -> Tensor:
    return kernels_BOIKL.permute(3, 4, 0, 1, 2).flatten(0, 1).contiguous()


def symmetric_product(rows_BMI: Tensor) -> Tensor:
    """Return rows^T rows, computing one of two equal halves. Shapes: (B, M, I) -> (B, I, I)."""
    if rows_BMI.shape[2] < algorithms.NARROW_DENSE:
        return rows_BMI.mT @ rows_BMI
    return _with_itself(transposed(rows_BMI))


def _with_itself(columns_BIM: Tensor) -> Tensor:
    size = columns_BIM.shape[1]
    if size <= algorithms.BLOCK:
        return batched_products(columns_BIM, columns_BIM)
    result = columns_BIM.new_empty(len(columns_BIM), size, size)
    first, second = slice(None, size // 2), slice(size // 2, None)
    for half in (first, second):
        result[:, half, half] = _with_itself(columns_BIM[:, half])
    beside = batched_products(columns_BIM[:, first], columns_BIM[:, second])
    result[:, first, second], result[:, second, first] = beside, transposed(beside)
    return result
