"""MaxMin and its gradient: few of torch's operations, or one kernel each way on a GPU."""

from typing import Any

import torch
from torch import Tensor

from aol.ops.dispatch import kernels_for, traced, transformed


def maxmin(x: Tensor) -> Tensor:
    """Return each pair of neighbouring channels (2i, 2i + 1) as (larger, smaller), channels last.

    At a tie the gradient is halved between both. Differentiable any number of times; torch's own
    operations do it from the second derivative on, and inside the transforms of `torch.func`.

    Shapes: (N, C, ...) or (C,) -> the same, C even.
    Raises: ValueError for other shapes.
    """
    channels = min(1, x.ndim - 1)
    if x.ndim == 0 or x.shape[channels] % 2:
        raise ValueError(
            f"MaxMin: got an input of shape {tuple(x.shape)}; it needs (N, C, ...) or (C,) with an "
            "even number of channels C, that of the outputs of the layer before it"
        )
    if transformed() or not channels:
        pairs = x.unflatten(channels, (-1, 2))
        ordered = torch.stack((pairs.amax(channels + 1), pairs.amin(channels + 1)), channels + 1)
        return ordered.flatten(channels, channels + 1)
    result: Tensor = _MaxMin.apply(x) if kernels_for(x) is None else _FusedMaxMin.apply(x)
    return result


class _MaxMin(torch.autograd.Function):
    """Keeps a byte per pair for the gradient: which was larger. Autograd would keep the values."""

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
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (order,) = ctx.saved_tensors
        share = order.to(upstream.dtype).add_(1).mul_(0.5)  # of a in the larger: 1, 1/2 or 0
        if traced(upstream):
            return _traced_gradient(upstream, share)
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
    """Keeps its input for the gradient: it is in memory anyway, and nothing has to be written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        pairs, ctx.kernels = _pairs(x), kernels_for(x)
        ctx.save_for_backward(pairs)
        result: Tensor = ctx.kernels.maxmin(pairs)
        return _channels(result)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        (pairs,) = ctx.saved_tensors
        if traced(upstream):
            a, b = pairs.unbind(-1)
            return _traced_gradient(upstream, (a - b).sign().add(1).mul(0.5))
        gradient: Tensor = ctx.kernels.maxmin_gradient(pairs, _pairs(upstream))
        return _channels(gradient)


def _traced_gradient(upstream: Tensor, share: Tensor) -> Tensor:
    """Return the gradient by operations that autograd can follow: linear in `upstream`.

    Shapes: (N, C, ...), (N, ..., C/2) -> (N, C, ...).
    """
    larger, smaller, of_a = upstream[:, ::2], upstream[:, 1::2], share.movedim(-1, 1)
    of_b = 1 - of_a
    gradients = (larger * of_a + smaller * of_b, larger * of_b + smaller * of_a)
    return torch.stack(gradients, 2).reshape(upstream.shape)


def _pairs(x: Tensor) -> Tensor:
    """Return the pairs, a view if `x` is channels last. Shapes: (N, C, ...) -> (N, ..., C/2, 2)."""
    pairs: Tensor = x.movedim(1, -1).contiguous().unflatten(-1, (-1, 2))
    return pairs


def _channels(pairs: Tensor) -> Tensor:
    """Return the channels of these pairs: the inverse of `_pairs`."""
    return pairs.flatten(-2).movedim(-1, 1)
