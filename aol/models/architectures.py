"""The paper's four architectures, each as a plain `nn.Sequential` from images to scores.

Source: `models/` of the authors' code; layer counts and widths as in the paper's section on
architectures. Input is (N, 3, 32, 32) in [0, 1]; output is (N, classes).
"""

from functools import partial

import torch
from torch import nn

from aol.catalog import IMAGE_CHANNELS, IMAGE_SIZE
from aol.config import ModelConfig
from aol.layers.modules import (
    AOLConv2d,
    AOLLinear,
    ConcatenationPooling,
    MaxMin,
    identity_,
)
from aol.layers.plain import FirstChannels, Flatten
from aol.models.widths import PATCHWISE_CHANNELS, misfit, widths_of

SameConv2d = partial(AOLConv2d, padding="same")


def build_model(config: ModelConfig, classes: int, generator: torch.Generator) -> nn.Sequential:
    """Return the network of `config`, initialised as in the paper with `generator`.

    Shapes: the network maps images (N, 3, 32, 32) to scores (N, classes).
    Raises: ValueError if no network has these widths (see `aol.models.widths.misfit`).
    Source: arXiv:2208.03160, section on architectures.
    """
    model = architecture(config, classes).to_empty(device="cpu")
    for layer in model:
        if isinstance(layer, AOLConv2d | AOLLinear):
            layer.reset_parameters(generator)
    return model.to(memory_format=torch.channels_last)


def architecture(config: ModelConfig, classes: int) -> nn.Sequential:
    """Return the network of `config` on the meta device: its parameters have shapes, no values.

    Raises: ValueError as `build_model`.
    """
    if reason := misfit(config, classes):
        raise ValueError(reason)
    widths = widths_of(config)
    with torch.device("meta"):
        match config.kind:
            case "patchwise":
                return patchwise(widths.kept, classes, channels=widths.channels)
            case "fc":
                return fully_connected(widths.channels, classes)
            case "conv":
                return conv(widths.channels, classes)
            case "std":
                return std(widths.channels, classes)


def patchwise(
    size: int,
    classes: int,
    *,
    channels: int = PATCHWISE_CHANNELS,
    convolutions: int = 12,
    dense_layers: int = 14,
) -> nn.Sequential:
    """AOL-Small, -Medium and -Large: convolutions on 4 x 4 patches, then dense layers.

    The dense layers see the first `size` of the convolutions' `channels`.
    """
    patch = 4
    features = size * (IMAGE_SIZE // patch) ** 2
    layers: list[nn.Module] = [
        ConcatenationPooling(patch, patch),
        SameConv2d(IMAGE_CHANNELS * patch**2, channels, 1),
        MaxMin(),
    ]
    for _ in range(convolutions):
        layers += [SameConv2d(channels, channels, 3, initialiser=identity_), MaxMin()]
    layers += [SameConv2d(channels, channels, 1, initialiser=identity_), FirstChannels(size)]
    layers += [Flatten(), AOLLinear(features, features, initialiser=identity_)]
    for _ in range(dense_layers - 1):
        layers += [MaxMin(), AOLLinear(features, features, initialiser=identity_)]
    return nn.Sequential(*layers, FirstChannels(classes))


def fully_connected(width: int, classes: int, *, dense_layers: int = 8) -> nn.Sequential:
    """AOL-FC: dense layers on the flattened image."""
    pixels = IMAGE_CHANNELS * IMAGE_SIZE**2
    layers: list[nn.Module] = [Flatten(), AOLLinear(pixels, width)]
    for _ in range(dense_layers - 1):
        layers += [MaxMin(), AOLLinear(width, width, initialiser=identity_)]
    return nn.Sequential(*layers, FirstChannels(classes))


def conv(size: int, classes: int) -> nn.Sequential:
    """AOL-Conv: five blocks that halve the image; the last two have 1 x 1 kernels."""

    def block(inputs: int, width: int, kernel_size: int) -> list[nn.Module]:
        layers: list[nn.Module] = [ConcatenationPooling(2, 2), SameConv2d(4 * inputs, width, 1)]
        for _ in range(4):
            layers += [MaxMin(), SameConv2d(width, width, kernel_size, initialiser=identity_)]
        return [*layers, MaxMin()]

    last = 64 * size
    return nn.Sequential(
        *block(IMAGE_CHANNELS, size, 3),
        *block(size, 4 * size, 3),
        *block(4 * size, 16 * size, 3),
        *block(16 * size, last, 1),
        SameConv2d(last, last, 1),
        FirstChannels(last // 4),
        *block(last // 4, last, 1),
        SameConv2d(last, last, 1, initialiser=identity_),
        FirstChannels(classes),
        Flatten(),
    )


def std(width: int, classes: int) -> nn.Sequential:
    """AOL-STD: a plain convolutional network whose width doubles as the image halves."""
    layers: list[nn.Module] = [SameConv2d(IMAGE_CHANNELS, width, 1), MaxMin()]
    for _ in range(5):
        for _ in range(4):
            layers += [SameConv2d(width, width, 3, initialiser=identity_), MaxMin()]
        layers += [ConcatenationPooling(2, 2), SameConv2d(4 * width, 2 * width, 1)]
        width *= 2
    layers += [SameConv2d(width, width, 1, initialiser=identity_)]
    return nn.Sequential(*layers, FirstChannels(classes), Flatten())
