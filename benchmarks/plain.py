"""A plain port of the authors' layers to PyTorch: the baseline of the benchmarks.

It has the paper's formulas and uses autograd for every gradient. The Gram kernel is a convolution
of the kernel with itself, computed in every forward pass.
Shapes as in `aol.layers.modules`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aol.layers import modules as layers

EPS = 1e-6


def rescale_conv(kernel: Tensor) -> Tensor:
    """Return the rescaled kernel. Shapes: (O, I, K, L) -> (O, I, K, L)."""
    by_input = kernel.transpose(0, 1)
    gram = F.conv2d(by_input, by_input, padding=(kernel.shape[2] - 1, kernel.shape[3] - 1))
    scale = (gram.abs().sum((1, 2, 3)) + EPS).rsqrt()
    return kernel * scale[:, None, None]


def rescale_dense(matrix: Tensor) -> Tensor:
    """Return the rescaled matrix. Shapes: (O, I) -> (O, I)."""
    return matrix * ((matrix.T @ matrix).abs().sum(1) + EPS).rsqrt()


class Conv2d(nn.Module):
    """A rescaled convolution with zero padding "same"."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def rescaled(self) -> Tensor:
        """Return the weight that the layer applies."""
        return rescale_conv(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.rescaled(), self.bias, padding="same")


class Linear(Conv2d):
    """A rescaled dense layer."""

    def rescaled(self) -> Tensor:
        """Return the weight that the layer applies."""
        return rescale_dense(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rescaled(), self.bias)


class MaxMin(nn.Module):
    """Sorts neighbouring channels into (larger, smaller)."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x[:, ::2], x[:, 1::2]
        return torch.stack((torch.maximum(a, b), torch.minimum(a, b)), 2).flatten(1, 2)


def plain_copy(model: nn.Sequential) -> nn.Sequential:
    """Return the same network of plain layers, with contiguous copies of the weights.

    Layers without weights, such as pooling, are shared.
    """
    copies: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, layers.AOLConv2d | layers.AOLLinear):
            kind = Conv2d if isinstance(layer, layers.AOLConv2d) else Linear
            weight = layer.weight.detach().clone(memory_format=torch.contiguous_format)
            assert layer.bias is not None  # noqa: S101 - the paper's layers have one
            copies.append(kind(weight, layer.bias.detach().clone()))
        else:
            copies.append(MaxMin() if isinstance(layer, layers.MaxMin) else layer)
    return nn.Sequential(*copies)
