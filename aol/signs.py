"""Passes over the Gram kernel: its signs, the sums of its sizes, the weights of its gradient.

Shape letters as in `aol.gram`.
"""

import torch
from torch import Tensor

from aol.fused import kernels_for


def signs_and_total(half: Tensor, *, signed: bool) -> tuple[Tensor | None, Tensor]:
    """V's signs if they are wanted, and each input channel's sum of |V| on the whole plane.

    `half`, V on half a plane, is used up. Shapes: (D, B, I, I) -> the same int8, (B, I).
    """
    kernels = kernels_for(half) if signed else None
    if kernels is None:
        signs = half.sign().to(torch.int8) if signed else None
        return signs, total(half.abs_())
    signs, sums = kernels.signs_and_sums(half.contiguous())
    mirrored = torch.linalg.vector_norm(half[1:], 1, dim=(0, 2))
    return signs, sums.sum(0) + mirrored


def signed_sums(signs: Tensor, pull_BI: Tensor) -> Tensor:
    """Every sign times the pulls of the two channels it is of. Shapes: (D, B, I, I) -> the same."""
    kernels = kernels_for(signs)
    if kernels is None:
        return signs.to(pull_BI.dtype).mul_(pull_BI[:, :, None] + pull_BI[:, None, :])
    weights: Tensor = kernels.signed_sums(signs, pull_BI.contiguous())
    return weights


def total(sizes: Tensor) -> Tensor:
    """Each input channel's sum of |V|, from the half-plane's. Shapes: (D, B, I, I) -> (B, I)."""
    if len(sizes) == 1:
        return sizes[0].sum(1)
    return sizes.sum((0, 3)) + sizes[1:].sum((0, 2))
