"""Batched matrix products by the fastest library at hand.

torch's float32 products on a CPU are MKL's, which takes half of an AMD processor's vector width;
oneDNN, which torch has for its convolutions, takes all of it on any (measured here: 95 against
200 GFLOP/s a core). The way there is the operator that torch's own compiler emits.
"""

import torch
from torch import Tensor

ONEDNN_FROM = 112  # rows, columns and summands; smaller products are over before oneDNN starts


def batched_products(left: Tensor, right: Tensor) -> Tensor:
    """Each left times its right transposed. Shapes: (..., N, K), (..., M, K) -> (..., N, M)."""
    if not _onednn_pays(left, right):
        return left @ right.mT
    shape = (*left.shape[:-2], left.shape[-2], right.shape[-2])
    pairs = zip(left.flatten(0, -3), right.flatten(0, -3), strict=True)
    found = [_onednn_product(*pair) for pair in pairs]
    return (torch.stack(found) if len(found) > 1 else found[0]).view(shape)


def separate_products(left: Tensor, right: Tensor) -> list[Tensor]:
    """The same, each of the first dimension by itself: nothing is copied to be stacked."""
    if left.ndim == 3 or not _onednn_pays(left, right):
        return list(batched_products(left, right).unbind())
    return [batched_products(*pair) for pair in zip(left, right, strict=True)]


def transposed(matrices: Tensor) -> Tensor:
    """Each matrix's transpose, contiguous. Shapes: (..., N, K) -> (..., K, N)."""
    if matrices.device.type != "cpu":
        return matrices.mT.contiguous()
    result = matrices.new_empty(matrices.mT.shape)
    pairs = zip(result.flatten(0, -3), matrices.flatten(0, -3), strict=True)
    for target, matrix in pairs:  # one by one: torch copies a batch of them without blocking
        target.copy_(matrix.T)
    return result


def _onednn_product(left: Tensor, right: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return product


def _onednn_pays(left: Tensor, right: Tensor) -> bool:
    return (
        left.device.type == "cpu"
        and left.dtype == torch.float32
        and min(*left.shape[-2:], right.shape[-2]) >= ONEDNN_FROM
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
