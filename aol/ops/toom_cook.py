"""The Gram kernel of 3 x 3 kernels and its gradient, with fewer matrix products than tap pairs.

The Gram kernel is a product of polynomials whose coefficients are matrices, so it is computed as
Toom and Cook multiply numbers: a few products of weighted sums of taps, from which the coefficients
follow. Half a plane of displacements needs 20 products instead of 45, its gradient 25 instead of
81. All weights of the Gram kernel are 0, 1 and -1 and the coefficients follow row by row and then
column by column, so it is as exact as the plain sum, and a kernel without some rows or columns
has zeros where it must. The gradient also evaluates at 2 (see GRADIENT); it is about four times
as far from exact as the plain sum, some 1e-6 of its largest entry in float32.

Shape letters: T = 9 taps in reading order, B kernels, O output channels, I input channels.
Source: A. L. Toom (1963), S. A. Cook (1966); for convolutions S. Winograd (1980).
"""

from functools import cache

import torch
from torch import Tensor

from aol.ops.matmul import batched_products, separate_products, transposed

# Weights of three taps in a line, and the pairs (left, right) of them that are multiplied.
SUM, ALTERNATING = (1.0, 1.0, 1.0), (1.0, -1.0, 1.0)
FIRST, MIDDLE, LAST, OUTER = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, -1.0)
Weights = tuple[float, ...]
OWN = ((SUM, SUM), (ALTERNATING, ALTERNATING), (FIRST, LAST), (OUTER, MIDDLE))
CROSSED = (*OWN, (LAST, FIRST), (MIDDLE, OUTER))

# One line of the gradient, g(t) = sum over s of tap(s) * weight(t - s): taps and weights are
# evaluated at the points 0, 1, -1, 2 and infinity, multiplied there, and collected.
TAPS_AT = ((0.0, 0.0, 1.0), (1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (4.0, 2.0, 1.0), (1.0, 0.0, 0.0))
WEIGHTS_AT = (
    (1.0, -1 / 2, -1.0, 1 / 2, 0.0),
    (0.0, 1.0, 1 / 2, -1 / 2, 0.0),
    (0.0, -1 / 3, 1 / 2, -1 / 6, 0.0),
    (0.0, -1 / 6, 0.0, 1 / 6, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0),
)
COLLECT = ((1.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 2.0, 4.0), (0.0, 0.0, 1.0))


def gram_3x3(taps_TBIO: Tensor) -> Tensor:
    """Return V at the half-plane's 13 displacements, (0, 0) first, in reading order.

    Shapes: (9, B, I, O) -> (13, B, I, I).
    """
    sums, alternating = (_own(taps_TBIO, weights) for weights in (SUM, ALTERNATING))
    ends, odd = _crossed(taps_TBIO, FIRST, LAST), _crossed(taps_TBIO, OUTER, MIDDLE)
    even = sums.sub(alternating).mul_(0.5)
    whole = sums.add_(alternating).mul_(0.5)
    gram = taps_TBIO.new_empty(13, *whole.shape[1:])
    same_row, next_row = gram[:3], gram[3:8]
    gram[8:] = ends
    torch.sub(whole, ends[2:], out=same_row)
    for x in (0, 1, 2):
        same_row[x] -= ends[2 - x].mT
    next_row.copy_(odd)
    next_row[2:] += even
    next_row[0] += even[2].mT
    next_row[1] += even[1].mT
    for x in range(5):
        next_row[x] -= odd[4 - x].mT
    next_row *= 0.5
    return gram


def gram_3x3_gradient(taps_TBOI: Tensor, weights: Tensor) -> Tensor:
    """Return the gradient, in the taps, of the half-plane's sum of `weights` times V.

    Shapes: (9, B, O, I), (13, B, I, I) with a symmetric matrix first -> (9, B, O, I). The
    matrix at (0, 0) counts half: it stands for its own mirror image.
    """
    mirrored = torch.cat((weights.flip(0), transposed(weights[1:])))  # all transposed
    gradient = torch.zeros_like(taps_TBOI).flatten(1)
    for row in range(5):
        row_at = _kron((WEIGHTS_AT[row],), ((1.0,),), like=mirrored) @ mirrored.view(5, -1)
        weights_at = _kron(((1.0,),), WEIGHTS_AT, like=mirrored) @ row_at.view(5, -1)
        taps_at = _kron((TAPS_AT[row],), TAPS_AT, like=taps_TBOI) @ taps_TBOI.flatten(1)
        at = batched_products(
            taps_at.view(5, *taps_TBOI.shape[1:]), weights_at.view(5, *weights.shape[1:])
        )
        gradient.addmm_(_kron((COLLECT[row],), COLLECT, like=taps_TBOI).T, at.flatten(1))
    return gradient.view_as(taps_TBOI)


def _own(taps_TBIO: Tensor, rows: Weights) -> Tensor:
    """Return V of one weighted sum of rows with itself, at x = 0, 1, 2. Shapes: -> (3, B, I, I)."""
    sums, alternating, ends, odd = _products(taps_TBIO, rows, rows, OWN)
    even = sums.sub(alternating).mul_(0.5)
    centre = sums.add_(alternating).mul_(0.5).sub_(ends).sub_(ends.mT)
    beside = even.add_(odd).sub_(odd.mT).mul_(0.5)
    return torch.stack((centre, beside, ends))


def _crossed(taps_TBIO: Tensor, left: Weights, right: Weights) -> Tensor:
    """Return V of a weighted sum of rows with another, at x = -2 to 2. Shapes: -> (5, B, I, I)."""
    sums, alternating, after, odd, before, odd_before = _products(taps_TBIO, left, right, CROSSED)
    even = sums.sub(alternating).mul_(0.5)
    centre = sums.add_(alternating).mul_(0.5).sub_(after).sub_(before)
    odd = odd.sub_(odd_before)
    return torch.stack((before, even.sub(odd).mul_(0.5), centre, even.add_(odd).mul_(0.5), after))


def _products(
    taps_TBIO: Tensor, left: Weights, right: Weights, columns: tuple[tuple[Weights, Weights], ...]
) -> list[Tensor]:
    """Return one product per pair of columns' weights. Shapes: -> pairs of (B, I, I)."""
    flat, shape = taps_TBIO.flatten(1), (len(columns), *taps_TBIO.shape[1:])
    lefts = _kron((left,), tuple(pair[0] for pair in columns), like=flat) @ flat
    rights = _kron((right,), tuple(pair[1] for pair in columns), like=flat) @ flat
    return separate_products(lefts.view(shape), rights.view(shape))


def _kron(rows: tuple[Weights, ...], columns: tuple[Weights, ...], *, like: Tensor) -> Tensor:
    return _kept_kron(rows, columns, like.dtype, like.device)


@cache  # made once: a CUDA graph cannot copy constants from the host
def _kept_kron(
    rows: tuple[Weights, ...],
    columns: tuple[Weights, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    with torch.inference_mode(mode=False):
        left, right = (torch.tensor(part, dtype=torch.float64) for part in (rows, columns))
        return torch.kron(left, right).to(device, dtype)
