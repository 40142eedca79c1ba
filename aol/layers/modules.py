"""The layers of the paper's networks; images are (N, C, H, W), kept channels-last in memory.

Source: `layers/` of the authors' code. Its kernels are (K, L, I, O), ours (O, I, K, L). Two of its
layers are in `aol.layers.plain`: what has no parameter and needs no faster way is the same there.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aol.ops.maxmin import maxmin
from aol.ops.rescale import rescale_conv, rescale_convs, rescale_dense, rescale_denses

Initialiser = Callable[[Tensor, torch.Generator], None]


def identity_(matrix: Tensor, generator: torch.Generator) -> None:
    """Fill (outputs, inputs) with the identity; `generator` is not used."""
    nn.init.eye_(matrix)


def repeated_orthogonal_(matrix: Tensor, generator: torch.Generator) -> None:
    """Fill (outputs, inputs) so that the map is orthogonal, or shares directions if it narrows.

    With inputs <= outputs the columns are orthonormal. Otherwise each input's column is drawn
    with replacement from an orthonormal basis of the outputs and divided by the square root
    of how often that basis vector was drawn, so the rescaling leaves it is.
    """
    outputs, inputs = matrix.shape
    if inputs <= outputs:
        nn.init.orthogonal_(matrix, generator=generator)
        return
    basis = torch.empty(outputs, outputs, dtype=matrix.dtype)
    nn.init.orthogonal_(basis, generator=generator)
    drawn = torch.randint(outputs, (inputs,), generator=generator)
    counts = torch.bincount(drawn, minlength=outputs)
    with torch.no_grad():
        matrix.copy_(basis[:, drawn] / counts[drawn].sqrt())


class _Rescaled(nn.Module):
    """A layer whose raw parameter is trained and whose rescaled weight is used."""

    weight: nn.Parameter
    bias: nn.Parameter
    _rescale: Callable[[Tensor], Tensor]
    _rescale_all: Callable[[Tensor], Tensor]
    _kept: Tensor | None = None

    def rescaled(self) -> Tensor:
        """The weight the layer applies, of the raw parameter's shape."""
        return self._rescale(self.weight) if self._kept is None else self._kept


def _rescaled_layers(model: nn.Module) -> list[_Rescaled]:
    return [layer for layer in model.modules() if isinstance(layer, _Rescaled)]


@contextmanager
def _keeping(model: nn.Module) -> Iterator[None]:
    """After the block every layer keeps what it kept before it: nothing, as a rule."""
    before = [(layer, layer._kept) for layer in _rescaled_layers(model)]
    try:
        yield
    finally:
        for layer, kept in before:
            layer._kept = kept


@contextmanager
def rescaled_once(model: nn.Module) -> Iterator[None]:
    """Inside the block every layer keeps its rescaled weight, without gradients to the raw one.

    For evaluation in several batches. Do not change weights inside.
    """
    with _keeping(model):
        with torch.no_grad():
            for layer in _rescaled_layers(model):
                layer._kept = layer.rescaled()
        yield


def in_float64(model: nn.Module) -> nn.Module:
    """A float64 copy that applies exactly the weights that `model` applies now, rescaled as there.

    For measuring: it keeps those weights, and its parameters have no gradients.
    """
    with rescaled_once(model):
        copy = deepcopy(model).double().requires_grad_(False)
    for layer in _rescaled_layers(copy):
        layer._kept = layer.rescaled().double()
    return copy


@contextmanager
def rescaled_together(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Inside the block layers of one shape share batched products, with gradients.

    For one forward pass where each product is too small to fill the device. `dtype` is what the
    layers apply their weights in: rescaled as they are, they are cast together, too.
    """
    alike: dict[tuple[type, torch.Size], list[_Rescaled]] = defaultdict(list)
    for layer in _rescaled_layers(model):
        alike[type(layer), layer.weight.shape].append(layer)
    with _keeping(model):
        for layers in alike.values():
            stacked = layers[0]._rescale_all(torch.stack([layer.weight for layer in layers]))
            applied = stacked if dtype is None else stacked.to(dtype)
            for layer, rescaled in zip(layers, applied.unbind(), strict=True):
                layer._kept = rescaled
        yield


class AOLLinear(_Rescaled):
    """A dense layer that is 1-Lipschitz in L2 whatever its raw parameter.

    Shapes: (N, inputs) -> (N, outputs). Source: `layers/` of the authors' code, AOLDense.
    """

    _rescale = staticmethod(rescale_dense)
    _rescale_all = staticmethod(rescale_denses)

    def __init__(
        self, inputs: int, outputs: int, *, initialiser: Initialiser = repeated_orthogonal_
    ) -> None:
        super().__init__()
        self.initialiser = initialiser
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the weight with the layer's initialiser and the bias with zeros."""
        self.initialiser(self.weight.data, generator)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rescaled(), self.bias)


# Options of nn.Conv2d: the one value the bound is proven for, and why no other is taken.
PROVEN: dict[str, tuple[object, str]] = {
    "stride": (1, "the authors' layer has none; put a ConcatenationPooling before it"),
    "groups": (1, "the scale would add up all groups, and shrink each for the others"),
    "padding_mode": ("zeros", "reflected or repeated borders exceed norm 1"),
}


class AOLConv2d(_Rescaled):
    """A stride-1 convolution that is 1-Lipschitz in L2 whatever its raw parameter.

    Zero padding "same" (an even kernel pads one more below and to the right) or "valid".
    `stride`, `groups` and `padding_mode` are there to be refused with the reason.

    Shapes: (N, inputs, H, W) -> (N, outputs, H', W').
    Raises: ValueError for what the theorem does not cover.
    Source: `layers/` of the authors' code, AOLConv2D.
    """

    _rescale = staticmethod(rescale_conv)
    _rescale_all = staticmethod(rescale_convs)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int | tuple[int, int],
        *,
        initialiser: Initialiser = repeated_orthogonal_,
        padding: Literal["same", "valid"] = "same",
        dilation: int = 1,
        stride: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        _refuse_unproven(padding, stride=stride, groups=groups, padding_mode=padding_mode)
        size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.padding: Literal["same", "valid"] = padding
        self.dilation = dilation
        self.initialiser = initialiser
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, *size))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def initialise(self, generator: torch.Generator) -> None:
        """Fill the kernel's spatial centre and set everything else to zero."""
        rows, columns = self.weight.shape[2:]
        centre = torch.empty(self.weight.shape[:2])
        self.initialiser(centre, generator)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, :, (rows - 1) // 2, (columns - 1) // 2] = centre
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.rescaled(), self.bias, padding=self.padding, dilation=self.dilation)


def _refuse_unproven(padding: str, **options: object) -> None:
    """Raise one ValueError with every option that has no proven bound."""
    problems = [
        f"{name} is {PROVEN[name][0]!r}, got {value!r}: {PROVEN[name][1]}"
        for name, value in options.items()
        if value != PROVEN[name][0]
    ]
    if padding not in ("same", "valid"):
        problems.append(
            f"padding is 'same' or 'valid', got {padding!r}: the bound is proven for zero "
            "padding; reflected or repeated borders exceed it"
        )
    if problems:
        raise ValueError("AOLConv2d: " + "; ".join(problems))


class MaxMin(nn.Module):
    """Each pair of neighbouring channels (2i, 2i + 1) as (larger, smaller); an isometry a.e.

    Shapes: (N, C, ...) -> the same, C even. At a tie the gradient is halved between both.
    Differentiable once.
    """

    def forward(self, x: Tensor) -> Tensor:
        return maxmin(x)


class ConcatenationPooling(nn.Module):
    """Each patch of pixels as the channels of one pixel, in the order row, column, channel.

    Rows and columns that fill no patch are dropped. An isometry otherwise.
    Shapes: (N, C, H, W) -> (N, rows * columns * C, H // rows, W // columns).
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // self.rows, x.shape[3] // self.columns
        x = x[:, :, : height * self.rows, : width * self.columns]
        tiles = x.permute(0, 2, 3, 1).unflatten(1, (height, self.rows))
        patches: Tensor = tiles.unflatten(3, (width, self.columns)).transpose(2, 3)
        return patches.flatten(3).permute(0, 3, 1, 2)
