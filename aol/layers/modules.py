"""The layers of the paper's networks; images are (N, C, H, W), kept channels-last in memory.

Source: `layers/` of the authors' code. Its kernels are (K, L, I, O), ours (O, I, K, L). The layers
without parameters are those of `aol.layers.plain`; only MaxMin is faster here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from aol.layers import plain
from aol.layers.initialisers import Initialiser, identity_, repeated_orthogonal_
from aol.layers.plain import ConcatenationPooling, FirstChannels, Flatten
from aol.ops.maxmin import maxmin
from aol.ops.rescale import rescale_conv, rescale_convs, rescale_dense, rescale_denses

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "ConcatenationPooling",
    "FirstChannels",
    "Flatten",
    "MaxMin",
    "Rescaling",
    "as_pair",
    "find_unproven",
    "identity_",
    "in_float64",
    "repeated_orthogonal_",
    "rescaled_once",
    "rescaled_together",
]

Device = torch.device | str | int | None
Padding = Literal["same", "valid"] | tuple[int, int]


class Rescaling(nn.Module):
    """A module that applies a rescaled weight, kept or computed again from its raw parameter."""

    _rescale: Callable[[Tensor], Tensor]
    _rescale_all: Callable[[Tensor], Tensor]
    _kept: Tensor | None = None

    def applied(self, raw: Tensor) -> Tensor:
        """Return the weight that is applied for the raw parameter `raw`, of the same shape."""
        return self._rescale(raw) if self._kept is None else self._kept


class _RescaledLayer(Rescaling):
    """A layer whose raw parameter `weight` is trained and whose rescaled weight is applied."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    initialiser: Initialiser

    def _create(
        self,
        shape: tuple[int, ...],
        *,
        bias: bool,
        device: Device,
        dtype: torch.dtype | None,
        generator: torch.Generator | None,
    ) -> None:
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        offsets = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", offsets)
        self.reset_parameters(generator)

    def rescaled(self) -> Tensor:
        """Return the weight that the layer applies, of the raw parameter's shape."""
        return self.applied(self.weight)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise the spatial centre of the weight; set all else, and the bias, to zero.

        Numbers are drawn in float32 at least, on the generator's device: without one from torch's
        generator of the CPU, so that they do not depend on the device of the layer. A layer on
        the meta device stays as it is.
        """
        if self.weight.is_meta:
            return
        outputs, inputs, *taps = self.weight.shape
        matrix = torch.empty(
            (outputs, inputs),
            dtype=torch.promote_types(self.weight.dtype, torch.float32),
            device="cpu" if generator is None else generator.device,
        )
        self.initialiser(matrix, generator=generator)
        self.weight.zero_()
        centre: Tensor = self.weight
        for size in reversed(taps):
            centre = centre.select(-1, (size - 1) // 2)
        centre.copy_(matrix)
        if self.bias is not None:
            self.bias.zero_()


class AOLLinear(_RescaledLayer):
    """A dense layer that is 1-Lipschitz in L2 whatever its raw parameter.

    Arguments are those of `torch.nn.Linear`; `initialiser` fills the weight and draws from
    `generator`.

    Shapes: (..., in_features) -> (..., out_features).
    Source: `layers/aol/aol_dense.py` of the authors' code.
    """

    _rescale = staticmethod(rescale_dense)
    _rescale_all = staticmethod(rescale_denses)

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        initialiser: Initialiser = repeated_orthogonal_,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.initialiser = initialiser
        shape = (out_features, in_features)
        self._create(shape, bias=bias, device=device, dtype=dtype, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.rescaled(), self.bias)

    def extra_repr(self) -> str:
        """Return the arguments as `torch.nn.Linear` prints them."""
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}"


# Options of nn.Conv2d: the one value that is accepted, how it is written, and why AOLConv2d has no
# other.
PROVEN: dict[str, tuple[object, str, str]] = {
    "stride": ((1, 1), "1", "the authors' layer has none; put a ConcatenationPooling before it"),
    "groups": (1, "1", "the scale would add up all groups, and shrink each for the others"),
    "padding_mode": ("zeros", "'zeros'", "reflected or repeated borders exceed norm 1"),
}


def find_unproven(**options: object) -> dict[str, str]:
    """Return a sentence, by name, for each option of a convolution without a proven bound."""
    return {
        name: f"{name} must be {PROVEN[name][1]}, got {value!r}"
        for name, value in options.items()
        if value != PROVEN[name][0]
    }


class AOLConv2d(_RescaledLayer):
    """A stride-1 convolution that is 1-Lipschitz in L2 whatever its raw parameter.

    Arguments are those of `torch.nn.Conv2d`, with its defaults; `initialiser` fills the kernel's
    spatial centre and draws from `generator`. `padding` is 0 or "valid", or "same" or the number
    that is the same, (kernel_size - 1) / 2 at dilation 1; the paper's layers have "same", which
    pads an even kernel with one more below and to the right. `stride`, `groups` and
    `padding_mode` are there to be refused with the reason.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H', W').
    Raises: ValueError for options that the authors' layer does not have.
    Source: `layers/aol/aol_conv2d.py` of the authors' code.
    """

    _rescale = staticmethod(rescale_conv)
    _rescale_all = staticmethod(rescale_convs)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: Literal["same", "valid"] | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        initialiser: Initialiser = repeated_orthogonal_,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.dilation = as_pair(kernel_size), as_pair(dilation)
        self.padding: Padding = padding if isinstance(padding, str) else as_pair(padding)
        found = find_unproven(stride=as_pair(stride), groups=groups, padding_mode=padding_mode)
        problems = [f"{sentence}: {PROVEN[name][2]}" for name, sentence in found.items()]
        problems += self._padding_problems()
        if problems:
            raise ValueError("AOLConv2d: " + "; ".join(problems))
        self.initialiser = initialiser
        shape = (out_channels, in_channels, *self.kernel_size)
        self._create(shape, bias=bias, device=device, dtype=dtype, generator=generator)

    def _padding_problems(self) -> list[str]:
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        if self.padding in ("same", "valid") or (
            isinstance(self.padding, tuple)
            and all(p == 0 or 2 * p == r for p, r in zip(self.padding, reach, strict=True))
        ):
            return []
        allowed = ["0", "'valid'", "'same'"]
        if not any(r % 2 for r in reach):
            allowed.append(str((reach[0] // 2, reach[1] // 2)))
        *others, last = allowed
        return [
            f"padding must be {', '.join(others)} or {last}, got {self.padding!r}: the authors' "
            "layer has zero padding to the image's size or none; put nn.ZeroPad2d before it for "
            "other borders"
        ]

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.rescaled(), self.bias, padding=self.padding, dilation=self.dilation)

    def extra_repr(self) -> str:
        """Return the arguments as `torch.nn.Conv2d` prints them, without what is the default."""
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        if self.padding != (0, 0):
            shown += f", padding={self.padding}"
        if self.dilation != (1, 1):
            shown += f", dilation={self.dilation}"
        return shown if self.bias is not None else shown + ", bias=False"


def as_pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return an option of torch, one number or two, as two: for rows and for columns."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class MaxMin(plain.MaxMin):
    """Each pair of neighbouring channels (2i, 2i + 1) as (larger, smaller); an isometry a.e.

    At a tie the gradient is halved between both. Differentiable any number of times.

    Shapes: (N, C, ...) or (C,) -> the same, C even.
    Raises: ValueError for an odd number of channels, or an input without dimensions.
    Source: `layers/basic/max_min_activation.py` of the authors' code; arXiv:1811.05381.
    """

    def forward(self, x: Tensor) -> Tensor:
        return maxmin(x)


# --- weights kept for more than one pass ---


def _rescalings(model: nn.Module) -> list[tuple[Rescaling, Tensor]]:
    """Return every module that rescales a weight, with its raw parameter."""
    found: list[tuple[Rescaling, Tensor]] = []
    for module in model.modules():
        if isinstance(module, _RescaledLayer):
            found.append((module, module.weight))
        elif isinstance(module, ParametrizationList) and isinstance(module[0], Rescaling):
            found.append((module[0], module.original))
    return found


@contextmanager
def _keeping(model: nn.Module) -> Iterator[None]:
    """Give every layer back, after the block, what it kept before it: nothing, as a rule."""
    before = [(rescaling, rescaling._kept) for rescaling, _ in _rescalings(model)]
    try:
        yield
    finally:
        for rescaling, kept in before:
            rescaling._kept = kept


@contextmanager
def rescaled_once(model: nn.Module) -> Iterator[None]:
    """Let every layer keep its rescaled weight inside the block, without gradients to the raw one.

    For evaluation in several batches. Do not change weights inside. Inputs and outputs of the
    model keep their shapes, and each kept weight has the shape of its raw parameter.
    """
    with _keeping(model):
        with torch.no_grad():
            for rescaling, raw in _rescalings(model):
                rescaling._kept = rescaling.applied(raw)
        yield


def in_float64(model: nn.Module) -> nn.Module:
    """Return a float64 copy that applies exactly the weights that `model` applies now.

    For measuring: it keeps those weights, and its parameters have no gradients.
    """
    with rescaled_once(model):
        copy = deepcopy(model).double().requires_grad_(False)
    for rescaling, raw in _rescalings(copy):
        rescaling._kept = rescaling.applied(raw).double()
    return copy


@contextmanager
def rescaled_together(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Let layers of one shape share batched products inside the block, with gradients.

    For one forward pass where each product is too small to fill the device. `dtype` is what the
    layers apply their weights in: rescaled as they are, they are cast together, too.
    """
    alike: dict[tuple[type, torch.Size], list[tuple[Rescaling, Tensor]]] = defaultdict(list)
    for rescaling, raw in _rescalings(model):
        alike[type(rescaling), raw.shape].append((rescaling, raw))
    with _keeping(model):
        for layers in alike.values():
            stacked = layers[0][0]._rescale_all(torch.stack([raw for _, raw in layers]))
            applied = stacked if dtype is None else stacked.to(dtype)
            for (rescaling, _), rescaled in zip(layers, applied.unbind(), strict=True):
                rescaling._kept = rescaled
        yield
