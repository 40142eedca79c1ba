"""A trained network in plain torch layers, rebuilt from one safetensors file.

This file imports torch and, to read a file, safetensors, and nothing else: a copy of it is written
beside exported weights as network.py and is all the code that they need.

    network, facts = load("network.safetensors")
    scores = network(pixels / 255)  # RGB pixels from 0 to 255, (N, 3, 32, 32)
"""

import json
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

FACTS = "aol"  # key of the file's metadata that holds the facts about the network, as JSON
MAX_LAYERS = 1000


class MaxMin(nn.Module):
    """Each pair of neighbouring channels (2i, 2i + 1) as (larger, smaller).

    Shapes: (N, C, ...) or (C,) -> the same, C even.
    Raises: RuntimeError or IndexError, by torch, for other shapes.
    """

    def forward(self, x: Tensor) -> Tensor:
        channels = min(1, x.dim() - 1)
        pairs = x.unflatten(channels, [x.shape[channels] // 2, 2])
        ordered = torch.stack([pairs.amax(channels + 1), pairs.amin(channels + 1)], channels + 1)
        return ordered.flatten(channels, channels + 1)


class ConcatenationPooling(nn.Module):
    """Each patch of pixels as the channels of one pixel, in the order row, column, channel.

    Rows and columns at the end that do not fill a patch are dropped. An isometry otherwise.

    Shapes: (N, C, H, W) -> (N, rows * columns * C, H // rows, W // columns), channels-last.
    Raises: ValueError for other shapes, and for images that are smaller than a patch.
    Source: `layers/basic/concatenation_pooling.py` of the authors' code.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[2] < self.rows or x.shape[3] < self.columns:
            raise ValueError(
                f"ConcatenationPooling: got an input of shape {list(x.shape)}; it needs "
                f"(N, C, H, W), H at least {self.rows} and W at least {self.columns}"
            )
        height, width = x.shape[2] // self.rows, x.shape[3] // self.columns
        x = x[:, :, : height * self.rows, : width * self.columns]
        tiles = x.permute(0, 2, 3, 1).unflatten(1, [height, self.rows])
        patches: Tensor = tiles.unflatten(3, [width, self.columns]).transpose(2, 3)
        return patches.flatten(3).permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Return the size of a patch."""
        return f"{self.rows}, {self.columns}"


class FirstChannels(nn.Module):
    """The first `channels` channels, or all if there are fewer.

    Shapes: (N, C, ...) -> (N, channels, ...).
    Source: `layers/basic/first_channels.py` of the authors' code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.channels]

    def extra_repr(self) -> str:
        """Return how many channels are kept."""
        return str(self.channels)


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
    """Return the network of a list of layers: each has its name in `LAYERS` and its arguments.

    Raises: KeyError, TypeError or ValueError if there is no such network.
    """
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"there are {len(layers)} layers; {MAX_LAYERS} are allowed")
    chain = []
    for described in layers:
        arguments = dict(described)
        chain.append(LAYERS[arguments.pop("layer")](**arguments))
    return nn.Sequential(*chain).eval()


def load(path: str | PathLike[str]) -> tuple[nn.Sequential, dict[str, Any]]:
    """Return the network of a safetensors file, and the facts stored with it."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()[FACTS])
        with torch.device("meta"):  # no memory: the facts can describe layers of any size
            network = build(facts["layers"])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network.load_state_dict(weights, assign=True)
    return network, facts
