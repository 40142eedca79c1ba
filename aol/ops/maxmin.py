"""MaxMin and its gradient: in few of torch's operations, or in one kernel each way on a GPU."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from aol.ops.dispatch import kernels_for


def maxmin(x: Tensor) -> Tensor:
    """Each pair of neighbouring channels (2i, 2i + 1) as (larger, smaller), channels last.

    At a tie the gradient is halved between both. Differentiable once.
    Shapes: (N, C, ...) -> the same, C even.
    """
    result: Tensor = _MaxMin.apply(x) if kernels_for(x) is None else _FusedMaxMin.apply(x)
    return result


class _MaxMin(torch.autograd.Function):
    """Autograd's own gradient keeps more of a pair than which of the two was larger."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pairs = _pairs(x)
        a, b = pairs.unbind(-1)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((a - b).sign_().to(torch.int8))
        result = torch.empty_like(pairs)
        torch.maximum(a, b, out=result[..., 0])
        torch.minimum(a, b, out=result[..., 1])
        return _channels(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (order,) = ctx.saved_tensors
        share = order.to(upstream.dtype).add_(1).mul_(0.5)  # of a in the larger: 1, 1/2 or 0
        pairs = _pairs(upstream)
        larger, smaller = pairs.unbind(-1)
        gradient = torch.empty_like(pairs)
        torch.mul(larger, share, out=gradient[..., 0])
        torch.mul(smaller, share, out=gradient[..., 1])
        share.neg_().add_(1)
        gradient[..., 0].addcmul_(smaller, share)
        gradient[..., 1].addcmul_(larger, share)
        return _channels(gradient)


class _FusedMaxMin(torch.autograd.Function):
    """What came in is kept, since it is there: nothing is written for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pairs, ctx.kernels = _pairs(x), kernels_for(x)
        ctx.save_for_backward(pairs)
        result: Tensor = ctx.kernels.maxmin(pairs)
        return _channels(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (pairs,) = ctx.saved_tensors
        gradient: Tensor = ctx.kernels.maxmin_gradient(pairs, _pairs(upstream))
        return _channels(gradient)


def _pairs(x: Tensor) -> Tensor:
    """Shapes: (N, C, ...) -> (N, ..., C / 2, 2), a view of what is channels last."""
    pairs: Tensor = x.movedim(1, -1).contiguous().unflatten(-1, (-1, 2))
    return pairs


def _channels(pairs: Tensor) -> Tensor:
    """The way back."""
    return pairs.flatten(-2).movedim(-1, 1)
