"""Choose what runs: Triton kernels on CUDA if they work there, plain formulas in `torch.func`."""

import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """Return the kernels for tensors of this device, None where torch's operations have to do."""
    return _working_on(tensor.device) if tensor.is_cuda else None


def transformed() -> bool:
    """Return whether a transform of `torch.func` is active: it can trace no hand-written gradient.

    The plain formulas run there, which are differentiable in every mode, in any order.
    """
    return torch._C._are_functorch_transforms_active()


def traced(upstream: Tensor) -> bool:
    """Return whether autograd records a gradient, or computes it for a batch of upstreams at once.

    That is so for second derivatives, and with `vectorize=True` in `torch.autograd.functional`.
    Torch's operations compute the gradient there, since a hand-written one cannot be followed.
    """
    return torch.is_grad_enabled() or torch._C._functorch.is_legacy_batchedtensor(upstream)


@cache  # needed in every step, and before one is recorded
def _working_on(device: torch.device) -> ModuleType | None:
    """Return the kernels, or None with a warning if Triton or the compiler it needs is missing."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # else 3.9 warns of its next default
    try:
        from aol.ops import triton_kernels as kernels

        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            _try_maxmin(kernels, device, dtype)
        for dtype in (torch.float32, torch.float64):
            _try_signs(kernels, device, dtype, 70)
        _try_signs(kernels, device, torch.float32, kernels.WIDEST + 6)  # in more than one step
    except Exception as error:
        warnings.warn(f"without fused kernels, slower: {error!r}", stacklevel=2)
        return None
    return kernels


def _try_maxmin(kernels: ModuleType, device: torch.device, dtype: torch.dtype) -> None:
    """Compare both kernels with torch, ties and NaN included. Raises: RuntimeError."""
    x, upstream = _drawn((2, 3, 700), device, dtype)
    x[0, :2], x[1, 0] = 1.0, torch.nan
    a, b = x[:, ::2], x[:, 1::2]
    larger, smaller = upstream[:, ::2], upstream[:, 1::2]
    halved, first, tie = (larger + smaller) / 2, a > b, a == b
    of_a = torch.where(first, larger, torch.where(tie, halved, smaller))
    of_b = torch.where(first, smaller, torch.where(tie, halved, larger))
    _compare("maxmin", kernels.maxmin(x), _paired(torch.maximum(a, b), torch.minimum(a, b)))
    _compare("maxmin_gradient", kernels.maxmin_gradient(x, upstream), _paired(of_a, of_b))


def _try_signs(kernels: ModuleType, device: torch.device, dtype: torch.dtype, size: int) -> None:
    """Compare the passes over a Gram kernel with torch. Raises: RuntimeError."""
    half, pull = _drawn((2, 1, size, size), device, dtype), _drawn((1, size), device, dtype)
    half[0, 0, 0] = 0.0
    signs, sums = kernels.signs_and_sums(half)
    _compare("signs", signs, half.sign().to(torch.int8))
    _compare("sums", sums, half.abs().sum(-1))
    expected = half.sign() * (pull[:, :, None] + pull[:, None, :])
    _compare("signed_sums", kernels.signed_sums(signs, pull), expected)


def _drawn(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(device, dtype)


def _paired(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack((a, b), -1).flatten(-2)


def _compare(name: str, found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found, expected, rtol=1e-5, equal_nan=True):
        raise RuntimeError(f"the kernel {name} computes other values than torch on this device")
