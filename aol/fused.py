"""Where the kernels of `aol.kernels` run: on CUDA, if they work there."""

import os
import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """The kernels for tensors of this device, None where torch's own operations have to do."""
    return _working_on(tensor.device) if tensor.is_cuda else None


@cache  # asked in every step, and to be answered before one is recorded
def _working_on(device: torch.device) -> ModuleType | None:
    """Triton may be missing, or the compiler that it needs, or be at odds with the driver."""
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # else 3.9 warns of its next default
    try:
        from aol import kernels

        _try_out(kernels, device)
    except Exception as error:
        warnings.warn(f"without fused kernels, slower: {error}", stacklevel=2)
        return None
    return kernels


def _try_out(kernels: ModuleType, device: torch.device) -> None:
    """Raises: RuntimeError for a kernel whose result is not torch's."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(3, 70, 70, generator=generator).to(device) for _ in range(2))
    larger, smaller = x.view(3, 70, 35, 2).sort(descending=True).values.unbind(-1)
    first = x[..., ::2] > x[..., 1::2]
    of_larger, of_smaller = upstream[..., ::2], upstream[..., 1::2]
    of_pair = (
        torch.where(first, of_larger, of_smaller),
        torch.where(first, of_smaller, of_larger),
    )
    signs, sums = kernels.signs_and_sums(x)
    pull = x[0, :3]
    results = {
        "maxmin": (kernels.maxmin(x), torch.stack((larger, smaller), -1).flatten(-2)),
        "maxmin_gradient": (
            kernels.maxmin_gradient(x, upstream),
            torch.stack(of_pair, -1).flatten(-2),
        ),
        "signs": (signs.to(x.dtype), x.sign()),
        "sums": (sums, x.abs().sum(-1)),
        "signed_sums": (
            kernels.signed_sums(signs[None], pull)[0],
            x.sign() * (pull[:, :, None] + pull[:, None, :]),
        ),
    }
    for name, (found, expected) in results.items():
        if not torch.allclose(found, expected, rtol=1e-5):
            raise RuntimeError(f"the kernel {name} computes something else on this device")
