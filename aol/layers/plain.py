"""A trained network in plain torch layers, rebuilt from one safetensors file.

This file imports torch and, to read a file, safetensors, and nothing else: a copy of it lies as
network.py beside exported weights and is all the code that they need.

    network, facts = load("network.safetensors")
    scores = network(pixels / 255)  # RGB pixels from 0 to 255, (N, 3, 32, 32)
"""

import json
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

FACTS = "aol"  # under which the file's metadata has what is known of the network, as JSON


class MaxMin(nn.Module):
    """Each pair of neighbouring channels (2i, 2i + 1) as (larger, smaller).

    Shapes: (N, C, ...) -> the same, C even.
    """

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(1, [x.shape[1] // 2, 2])
        return torch.stack([pairs.amax(2), pairs.amin(2)], 2).flatten(1, 2)


class ConcatenationPooling(nn.Module):
    """Each patch of pixels as the channels of one pixel, in the order row, column, channel.

    Shapes: (N, C, H, W) -> (N, rows * columns * C, H // rows, W // columns).
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2] // self.rows, x.shape[3] // self.columns
        x = x[:, :, : height * self.rows, : width * self.columns]
        tiles = x.unflatten(2, [height, self.rows]).unflatten(4, [width, self.columns])
        patches: Tensor = tiles.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
        return patches


class FirstChannels(nn.Module):
    """The first `channels` channels. Shapes: (N, C, ...) -> (N, channels, ...)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]


class Flatten(nn.Module):
    """All values of an image, channels fastest. Shapes: (N, C, H, W) -> (N, H * W * C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


LAYERS: dict[str, type[nn.Module]] = {
    "Conv2d": nn.Conv2d,
    "Linear": nn.Linear,
    "MaxMin": MaxMin,
    "ConcatenationPooling": ConcatenationPooling,
    "FirstChannels": FirstChannels,
    "Flatten": Flatten,
}


def build(layers: list[dict[str, Any]]) -> nn.Sequential:
    """The network of a list of layers, each its name in `LAYERS` as "layer" and its arguments.

    Raises: KeyError, TypeError, ValueError if there is no such network.
    """
    chain = []
    for described in layers:
        arguments = dict(described)
        chain.append(LAYERS[arguments.pop("layer")](**arguments))
    return nn.Sequential(*chain).eval()


def load(path: str | PathLike[str]) -> tuple[nn.Sequential, dict[str, Any]]:
    """The network of a safetensors file, and what is known of it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[FACTS])
        network = build(facts["layers"])
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return network, facts
