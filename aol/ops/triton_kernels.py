"""Kernels for GPUs: one pass over memory where torch's operations need many.

Written in Triton, which comes with torch for CUDA; `aol.ops.dispatch` decides where they run.
Tensors have their pairs or matrices last and are contiguous.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PAIRS = 1024  # of a program
TILE = 4096  # entries of a program that takes rows
WIDEST = 1024  # columns that it takes at once
THREAD_ENTRIES = 16


@triton.jit
def _pairs(x, at, inside, PAIRS: tl.constexpr):
    """Return the first and second of each pair, in float32 at least."""
    found = tl.load(x + at, mask=inside)
    if found.dtype == tl.bfloat16:
        found = found.to(tl.float32)
    return tl.split(tl.reshape(found, (PAIRS, 2)))


@triton.jit
def _maxmin(x, result, count, PAIRS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * 2 * PAIRS + tl.arange(0, 2 * PAIRS)
    inside = at < count
    a, b = _pairs(x, at, inside, PAIRS)
    larger = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    smaller = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    tl.store(result + at, tl.reshape(tl.join(larger, smaller), (2 * PAIRS,)), mask=inside)


@triton.jit
def _maxmin_gradient(x, upstream, gradient, count, PAIRS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * 2 * PAIRS + tl.arange(0, 2 * PAIRS)
    inside = at < count
    a, b = _pairs(x, at, inside, PAIRS)
    larger, smaller = _pairs(upstream, at, inside, PAIRS)
    halved = (larger + smaller) * 0.5
    of_a = tl.where(a > b, larger, tl.where(a == b, halved, smaller))
    of_b = tl.where(a > b, smaller, tl.where(a == b, halved, larger))
    tl.store(gradient + at, tl.reshape(tl.join(of_a, of_b), (2 * PAIRS,)), mask=inside)


@triton.jit
def _signs_and_sums(
    matrices,
    signs,
    sums,
    rows,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    found = tl.zeros((ROWS, COLUMNS), matrices.dtype.element_ty)
    for start in range(0, SIZE, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        at = row[:, None] * SIZE + column[None, :]
        inside = (row[:, None] < rows) & (column[None, :] < SIZE)
        entry = tl.load(matrices + at, mask=inside, other=0.0)
        tl.store(signs + at, (entry > 0).to(tl.int8) - (entry < 0).to(tl.int8), mask=inside)
        found += tl.abs(entry)
    tl.store(sums + row, tl.sum(found, 1), mask=row < rows)


@triton.jit
def _signed_sums(
    signs,
    pull,
    result,
    rows,
    count,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    at = row[:, None] * SIZE + column[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < SIZE)
    matrix = row // SIZE % count
    own = tl.load(pull + matrix * SIZE + row % SIZE, mask=row < rows)
    other = tl.load(pull + matrix[:, None] * SIZE + column[None, :], mask=inside)
    sign = tl.load(signs + at, mask=inside)
    tl.store(result + at, sign.to(other.dtype) * (own[:, None] + other), mask=inside)


def maxmin(x: Tensor) -> Tensor:
    """Return each pair of neighbours as (larger, smaller). Shapes: (..., 2 C) -> the same."""
    result = torch.empty_like(x)
    _maxmin[_pairs_of(x)](x, result, x.numel(), PAIRS=PAIRS)
    return result


def maxmin_gradient(x: Tensor, upstream: Tensor) -> Tensor:
    """Return MaxMin's gradient in `x`, halved at ties. Shapes: (..., 2 C) twice -> the same."""
    gradient = torch.empty_like(x)
    _maxmin_gradient[_pairs_of(x)](x, upstream, gradient, x.numel(), PAIRS=PAIRS)
    return gradient


def signs_and_sums(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sign of every entry, and each row's sum of sizes.

    Shapes: (..., I, I) -> (..., I, I) int8, (..., I).
    """
    size = matrices.shape[-1]
    signs = torch.empty_like(matrices, dtype=torch.int8)
    sums = matrices.new_empty(matrices.shape[:-1])
    tile, rows = _tile_of(size), sums.numel()
    grid = (triton.cdiv(rows, tile["ROWS"]),)
    _signs_and_sums[grid](matrices, signs, sums, rows, size, **tile)
    return signs, sums


def signed_sums(signs: Tensor, pull: Tensor) -> Tensor:
    """Return each sign times the sum of its row's and its column's pull.

    Shapes: (D, B, I, I) int8, (B, I) -> (D, B, I, I) of the pulls' type.
    """
    count, size = pull.shape
    result = torch.empty_like(signs, dtype=pull.dtype)
    tile, rows = _tile_of(size), signs.numel() // size
    grid = (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(size, tile["COLUMNS"]))
    _signed_sums[grid](signs, pull, result, rows, count, size, **tile)
    return result


def _pairs_of(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), 2 * PAIRS),)


def _tile_of(size: int) -> dict[str, int]:
    columns = min(triton.next_power_of_2(size), WIDEST)
    warps = TILE // (32 * THREAD_ENTRIES)
    return {"ROWS": TILE // columns, "COLUMNS": columns, "num_warps": warps}
