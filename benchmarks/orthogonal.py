"""Layers that are (nearly) orthogonal, as our own short ports, to be compared with AOL's.

All of them map n channels to n channels and have a Lipschitz constant of 1 up to rounding; that of
`SOC` holds up to the error of its truncated series. They take the place of AOL's layers in the same
network: see `benchmarks.costs`.
"""

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOC_TERMS = 5  # of the exponential series in training, as its authors' code has it
SOC_SCALE = 0.7  # their factor on the skew kernel of norm 1
EPSILON = 1e-6


class Cayley(nn.Module):
    """A dense layer: W = (I + A)⁻¹(I - A) with the skew A = P - Pᵀ.

    Source: A. Trockman, J. Z. Kolter, arXiv:2104.07167.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, features) / sqrt(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features) to (N, features)."""
        return F.linear(x, _cayley(self.weight), self.bias)


class CayleyConv(nn.Module):
    """A convolution with circular padding whose matrix at every frequency is a Cayley transform.

    Source: A. Trockman, J. Z. Kolter, arXiv:2104.07167.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        shape = (channels, channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(shape) / sqrt(channels) / kernel_size)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        size = x.shape[-2:]
        kernels = torch.fft.rfft2(self.weight, s=size).permute(2, 3, 0, 1)
        spectra = torch.fft.rfft2(x).permute(2, 3, 1, 0)
        mapped = (_cayley(kernels) @ spectra).permute(3, 2, 0, 1)
        images: Tensor = torch.fft.irfft2(mapped, s=size)
        return images + self.bias[:, None, None]


def _cayley(raw: Tensor) -> Tensor:
    skew = raw - raw.mH
    identity = torch.eye(raw.shape[-1], dtype=raw.dtype, device=raw.device)
    transformed: Tensor = torch.linalg.solve(identity + skew, identity - skew)
    return transformed


class SOC(nn.Module):
    """The exponential of a skew-symmetric convolution, by its series; a dense layer has 1×1 inputs.

    The kernel is scaled by one power iteration a step on its unfolded matrix, whose norm times the
    kernel's size bounds that of the convolution. Source: S. Singla, S. Feizi, arXiv:2105.11417.
    """

    vector: Tensor

    def __init__(self, channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        shape = (channels, channels, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(shape) / sqrt(channels) / kernel_size)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("vector", torch.randn(channels))
        for _ in range(50):
            self._norm(self._skew())

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) or (N, channels) to the same shape."""
        images = x if x.ndim == 4 else x[:, :, None, None]
        skew = self._skew()
        kernel = SOC_SCALE * skew / self._norm(skew)
        padding, term, total = kernel.shape[-1] // 2, images, images
        for order in range(1, SOC_TERMS + 1):
            term = F.conv2d(term, kernel, padding=padding) / order
            total = total + term
        return (total + self.bias[:, None, None]).reshape(x.shape)

    def _skew(self) -> Tensor:
        return self.weight - self.weight.transpose(0, 1).flip(2, 3)

    def _norm(self, skew: Tensor) -> Tensor:
        matrix = skew.flatten(1)
        with torch.no_grad():
            right = F.normalize(matrix.mT @ self.vector, dim=0)
            self.vector.copy_(F.normalize(matrix @ right, dim=0))
        return skew.shape[-1] * (self.vector @ matrix @ right)


class SLL(nn.Module):
    """The residual layer x - 2WT⁻¹ReLU(Wᵀx + b), which has its own activation.

    T is diagonal, Tᵢ = Σⱼ |WᵀW|ᵢⱼ qⱼ/qᵢ. Source: A. Araujo et al., arXiv:2303.03169.
    """

    def __init__(self, channels: int, kernel_size: int | None = None) -> None:
        super().__init__()
        size = () if kernel_size is None else (kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.randn(channels, channels, *size) / sqrt(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.log_q = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) or (N, channels) to the same shape."""
        q = self.log_q.exp()
        if self.weight.ndim == 2:
            products = self.weight @ self.weight.mT
            inner = F.relu(F.linear(x, self.weight, self.bias))
            scale = 2 / (products.abs() @ q / q + EPSILON)
            return x - (scale * inner) @ self.weight
        size = self.weight.shape[-1]
        products = F.conv2d(self.weight, self.weight, padding=size - 1).abs().sum((2, 3))
        scale = 2 / (products @ q / q + EPSILON)
        inner = F.relu(F.conv2d(x, self.weight, self.bias, padding=size // 2))
        scaled = scale[:, None, None] * inner
        return x - F.conv_transpose2d(scaled, self.weight, padding=size // 2)
