"""The paper's theorem: scale the input channels of a kernel so that its layer is 1-Lipschitz.

For a kernel P (O, I, K, L) with the Gram kernel V (see `aol.ops.gram`) the scale of input channel i
is

    scale_i = (sum over j, y, x of |V_ij(y, x)| + EPS) ** -1/2,

and a dense layer is a kernel with one tap. The gradient is written by hand: with r the scale and
g = -1/2 * r**3 * sum(upstream * P), every |V_ij| pulls on P with weight sign(V_ij) * (g_i + g_j),
so that only the signs of V are kept, a byte each. Narrow kernels take V from torch's convolution,
whose one call is faster there than several products, and the narrowest leave the gradient to
autograd. A gradient that has to be differentiated again is autograd's for the plain formula.

Shape letters: B kernels of one shape, O output channels, I input channels, K x L taps.
Source: arXiv:2208.03160, theorem for dense layers and for convolutions.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from aol.ops import algorithms
from aol.ops.dispatch import kernels_for, traced, transformed
from aol.ops.gram import gram, gram_gradient, symmetric_product
from aol.ops.matmul import batched_products

EPS = 1e-6  # keeps the scale of an all-zero input channel finite; the authors' value


class _Rescale(torch.autograd.Function):
    """Rescale kernels by V on half a plane of displacements."""

    @staticmethod
    def forward(ctx: Any, kernels_BOIKL: Tensor) -> Tensor:
        signs, total_BI = signs_and_total(gram(kernels_BOIKL), signed=ctx.needs_input_grad[0])
        scale_BI = _scale_of(total_BI)
        ctx.save_for_backward(kernels_BOIKL, signs, scale_BI)
        return kernels_BOIKL * _per_input(scale_BI)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        kernels_BOIKL, signs, scale_BI = ctx.saved_tensors
        if traced(upstream):
            return _traced_gradient(_convs_rescaled_plainly, kernels_BOIKL, upstream)
        weights = signed_sums(signs, _pull(kernels_BOIKL, scale_BI, upstream))
        gradient = gram_gradient(kernels_BOIKL, weights)
        return torch.addcmul(gradient, upstream, _per_input(scale_BI))


class _RescaleDense(torch.autograd.Function):
    """Rescale matrices, in one product each way."""

    @staticmethod
    def forward(ctx: Any, matrices_BOI: Tensor) -> Tensor:
        gram = symmetric_product(matrices_BOI)[None]
        signs, total_BI = signs_and_total(gram, signed=ctx.needs_input_grad[0])
        scale_BI = _scale_of(total_BI)
        ctx.save_for_backward(matrices_BOI, signs, scale_BI)
        return matrices_BOI * scale_BI[:, None]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        matrices_BOI, signs, scale_BI = ctx.saved_tensors
        if traced(upstream):
            return _traced_gradient(_rescaled_plainly, matrices_BOI, upstream)
        pull = -0.5 * scale_BI**3 * (upstream * matrices_BOI).sum(1)
        weights = signed_sums(signs, pull)[0]
        gradient = batched_products(matrices_BOI, weights)  # they are symmetric
        return gradient.addcmul_(upstream, scale_BI[:, None])


class _RescaleNarrow(torch.autograd.Function):
    """Rescale kernels by V on the whole plane: one convolution of the kernels with themselves."""

    @staticmethod
    def forward(ctx: Any, kernels_BOIKL: Tensor) -> Tensor:
        whole = _whole_gram(kernels_BOIKL)
        scale_BI = _scale_of(whole.abs().sum((0, 3, 4)))
        ctx.save_for_backward(kernels_BOIKL, whole, scale_BI)
        return kernels_BOIKL * _per_input(scale_BI)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        kernels_BOIKL, whole, scale_BI = ctx.saved_tensors
        if traced(upstream):
            return _traced_gradient(_convs_rescaled_plainly, kernels_BOIKL, upstream)
        pull = _pull(kernels_BOIKL, scale_BI, upstream)
        weights = whole.sign().mul_((pull.mT[:, :, None] + pull)[..., None, None])
        gradient = _whole_gram_gradient(kernels_BOIKL, weights)
        return torch.addcmul(gradient, upstream, _per_input(scale_BI))


def _traced_gradient(
    plain: Callable[[Tensor], Tensor], kernels: Tensor, upstream: Tensor
) -> Tensor:
    """Return the gradient as autograd computes it for the plain formula, differentiable again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        rescaled = _in_full_precision(plain, kernels)
    (gradient,) = torch.autograd.grad(rescaled, kernels, upstream, create_graph=again)
    return gradient


def _whole_gram(kernels_BOIKL: Tensor) -> Tensor:
    """Return V at every displacement. Shapes: -> (I, B, I, 2K - 1, 2L - 1)."""
    count, _, inputs, rows, columns = kernels_BOIKL.shape
    images = kernels_BOIKL.permute(2, 0, 1, 3, 4).flatten(1, 2)
    filters = kernels_BOIKL.transpose(1, 2).flatten(0, 1)
    whole = F.conv2d(images, filters, padding=(rows - 1, columns - 1), groups=count)
    return whole.view(inputs, count, inputs, 2 * rows - 1, 2 * columns - 1)


def _whole_gram_gradient(kernels_BOIKL: Tensor, weights: Tensor) -> Tensor:
    """Return what `gram_gradient` does, for weights of the whole plane."""
    count, outputs, inputs, rows, columns = kernels_BOIKL.shape
    gradient = F.conv_transpose2d(
        weights.flatten(1, 2),
        kernels_BOIKL.transpose(1, 2).flatten(0, 1),
        padding=(rows - 1, columns - 1),
        groups=count,
    )
    return gradient.view(inputs, count, outputs, rows, columns).permute(1, 2, 0, 3, 4)


def _scale_of(total: Tensor) -> Tensor:
    """Return the scale of input channels whose |V| have this sum."""
    return (total + EPS).rsqrt()


def _pull(kernels_BOIKL: Tensor, scale_BI: Tensor, upstream: Tensor) -> Tensor:
    return -0.5 * scale_BI**3 * (upstream * kernels_BOIKL).sum((1, 3, 4))


def _per_input(scale_BI: Tensor) -> Tensor:
    return scale_BI[:, None, :, None, None]


def rescale_convs(kernels: Tensor) -> Tensor:
    """Return kernels of one shape, each rescaled as by `rescale_conv`, in batched products.

    Shapes: (B, O, I, K, L) -> (B, O, I, K, L).
    """
    _, _, inputs, rows, columns = kernels.shape
    if rows == columns == 1:
        return rescale_denses(kernels.flatten(2)).view(kernels.shape)
    if transformed():
        return _in_full_precision(_convs_rescaled_plainly, kernels)
    function = _RescaleNarrow if inputs < algorithms.NARROW else _Rescale
    return _in_full_precision(function.apply, kernels)


def rescale_denses(matrices: Tensor) -> Tensor:
    """Return matrices of one shape, each rescaled as by `rescale_dense`.

    Shapes: (B, O, I) -> (B, O, I).
    """
    plain = matrices.shape[-1] < algorithms.NARROW_DENSE or transformed()
    return _in_full_precision(_rescaled_plainly if plain else _RescaleDense.apply, matrices)


def rescale_conv(kernel: Tensor) -> Tensor:
    """Return the kernel whose stride-1, zero-padded convolution is 1-Lipschitz in L2.

    In the kernel's own precision also under autocast: the scale is the certificate. Differentiable
    any number of times; from the second derivative on, and inside the transforms of `torch.func`,
    by autograd.

    Shapes: (O, I, K, L) -> (O, I, K, L).
    Raises: ValueError for another number of dimensions.
    Source: arXiv:2208.03160, theorem for convolutions.
    """
    if kernel.ndim != 4:
        raise ValueError(
            f"rescale_conv: a kernel must have shape (O, I, K, L), got {(*kernel.shape,)}"
        )
    if kernel.shape[2:].numel() == 1:
        return rescale_dense(kernel.flatten(1)).view(kernel.shape)
    if kernel.shape[1] < algorithms.NARROWEST or transformed():
        return _in_full_precision(_conv_rescaled_plainly, kernel)
    return rescale_convs(kernel[None])[0]


def rescale_dense(matrix: Tensor) -> Tensor:
    """Return the matrix whose linear map is 1-Lipschitz in L2.

    Precision and derivatives are those of `rescale_conv`.

    Shapes: (O, I) -> (O, I).
    Raises: ValueError for another number of dimensions.
    Source: arXiv:2208.03160, theorem for dense layers.
    """
    if matrix.ndim != 2:
        raise ValueError(f"rescale_dense: a matrix must have shape (O, I), got {(*matrix.shape,)}")
    if matrix.shape[-1] < algorithms.NARROW_DENSE or transformed():
        return _in_full_precision(_rescaled_plainly, matrix)
    return rescale_denses(matrix[None])[0]


def _rescaled_plainly(matrices: Tensor) -> Tensor:
    """Rescale matrices with autograd's gradient: few columns take less than calling a Function."""
    gram = matrices.mT @ matrices
    scale = _scale_of(gram.abs().sum(-1))
    return matrices * (scale if matrices.ndim == 2 else scale.unsqueeze(-2))


def _conv_rescaled_plainly(kernel_OIKL: Tensor) -> Tensor:
    """Rescale one kernel with autograd's gradient."""
    by_input = kernel_OIKL.transpose(0, 1)
    rows, columns = kernel_OIKL.shape[2:]
    gram = F.conv2d(by_input, by_input, padding=(rows - 1, columns - 1))
    scale = _scale_of(gram.abs().sum((1, 2, 3)))
    return kernel_OIKL * scale[:, None, None]


def _convs_rescaled_plainly(kernels_BOIKL: Tensor) -> Tensor:
    """Rescale kernels of one shape with autograd's gradient."""
    return torch.stack([_conv_rescaled_plainly(kernel) for kernel in kernels_BOIKL.unbind()])


def _in_full_precision(function: Callable[[Tensor], Tensor], kernels: Tensor) -> Tensor:
    if not torch._C._is_any_autocast_enabled():  # private, and the fastest check that torch has
        return function(kernels)
    with torch.autocast(kernels.device.type, enabled=False):
        return function(kernels)


def signs_and_total(half: Tensor, *, signed: bool) -> tuple[Tensor | None, Tensor]:
    """Return V's signs if `signed`, and each input channel's sum of |V| on the whole plane.

    `half`, V on half a plane, is overwritten. Shapes: (D, B, I, I) -> the same int8, (B, I).
    """
    kernels = kernels_for(half) if signed else None
    if kernels is None:
        signs = half.sign().to(torch.int8) if signed else None
        return signs, total(half.abs_())
    signs, sums = kernels.signs_and_sums(half.contiguous())
    mirrored = torch.linalg.vector_norm(half[1:], 1, dim=(0, 2))
    return signs, sums.sum(0) + mirrored


def signed_sums(signs: Tensor, pull_BI: Tensor) -> Tensor:
    """Return every sign times the sum of its two channels' pulls. Shapes: (D, B, I, I) -> same."""
    kernels = kernels_for(signs)
    if kernels is None:
        return signs.to(pull_BI.dtype).mul_(pull_BI[:, :, None] + pull_BI[:, None, :])
    weights: Tensor = kernels.signed_sums(signs, pull_BI.contiguous())
    return weights


def total(sizes: Tensor) -> Tensor:
    """Return each input channel's sum of |V|, from half a plane. Shapes: (D, B, I, I) -> (B, I)."""
    if len(sizes) == 1:
        return sizes[0].sum(1)
    return sizes.sum((0, 3)) + sizes[1:].sum((0, 2))
