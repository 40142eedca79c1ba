"""Batched matrix products by the fastest library that is available.

On a CPU torch computes float32 products with MKL, which uses half of the vector width of AMD
processors. oneDNN, which torch has for its convolutions, uses all of it (measured: 95 against 200
GFLOP/s a core); it is called through the operator that torch's compiler emits.
"""

import torch
from torch import Tensor

ONEDNN_FROM = 112  # rows, columns and summands; smaller products are over before oneDNN starts


def batched_products(left: Tensor, right: Tensor) -> Tensor:
    """Return each left times its right transposed.

    Shapes: (..., N, K), (..., M, K) -> (..., N, M).
    """
    if not _onednn_pays(left, right):
        return left @ right.mT
    shape = (*left.shape[:-2], left.shape[-2], right.shape[-2])
    pairs = zip(left.flatten(0, -3), right.flatten(0, -3), strict=True)
    found = [_onednn_product(*pair) for pair in pairs]
    return (torch.stack(found) if len(found) > 1 else found[0]).view(shape)


def separate_products(left: Tensor, right: Tensor) -> list[Tensor]:
    """Return the products of `batched_products` as a list along the first dimension, unstacked."""
    if left.ndim == 3 or not _onednn_pays(left, right):
        return list(batched_products(left, right).unbind())
    return [batched_products(*pair) for pair in zip(left, right, strict=True)]


def transposed(matrices: Tensor) -> Tensor:
    """Return each matrix's transpose, contiguous. Shapes: (..., N, K) -> (..., K, N)."""
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
