"""The widths that an architecture can have, by arithmetic alone, without torch."""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Literal

from aol.config import ModelConfig

PATCHWISE_CHANNELS = 192
FC_WIDTH = 4096
STD_WIDTH = 32
PATCHES = 8 * 8  # of 4 x 4 pixels
MOST_CHANNELS = 2**20  # a dense layer with as many inputs and outputs has 4 TiB of weights
REACH = 1024  # how far to look for a value that fits, in steps of one channel

Model = tuple[ModelConfig, int]  # with its number of classes
Field = Literal["size", "width"]


@dataclass(frozen=True)
class Widths:
    """The channel counts that follow from a model's kind, size and width."""

    channels: int  # of the first layer; MaxMin pairs these and multiples of them
    kept: int  # channels of the last convolution that "patchwise" goes on with, else `channels`
    outputs: int  # of the last layer, the widest of those after the first


def widths_of(config: ModelConfig) -> Widths:
    """Return the channel counts of `config`, also where they do not fit."""
    channels = _scaled(_base(config), config.width)
    match config.kind:
        case "patchwise":
            kept = _scaled(config.size, config.width)
            return Widths(channels, kept, kept * PATCHES)
        case "fc":
            return Widths(channels, channels, channels)
        case "conv":
            return Widths(channels, channels, 64 * channels)
        case "std":
            return Widths(channels, channels, 32 * channels)


def misfit(config: ModelConfig, classes: int) -> str | None:
    """Return why no network has these widths, in one sentence; None if one has."""
    widths = widths_of(config)
    if max(widths.channels, widths.outputs) > MOST_CHANNELS:
        return f"a layer has at most {MOST_CHANNELS} channels"
    if widths.kept > widths.channels:
        return (
            f"size {widths.kept} keeps more channels than the convolutions have, {widths.channels}"
        )
    if widths.outputs < classes:
        return f"the last layer has {widths.outputs} outputs, {classes} classes need more"
    if widths.channels % 2:
        return f"MaxMin pairs channels, every width must be even, not {widths.channels}"
    return None


def neighbours(models: Collection[Model], field: Field) -> list[Fraction]:
    """Return the values of `field` nearest to the models' common one that fit all of them.

    One below and one above, where there are any.
    """
    value = min(getattr(next(iter(models))[0], field), 2.0**63)
    unit = Fraction(1, max(_base(config) for config, _ in models)) if field == "width" else 1

    def at(step: int) -> list[Model]:
        return [(_with(config, field, step * unit), classes) for config, classes in models]

    steps = range(1, MOST_CHANNELS + 1)
    low = 1 + bisect_left(steps, True, key=lambda step: all(map(_wide_enough, at(step))))
    high = bisect_left(steps, True, key=lambda step: any(map(_too_wide, at(step))))
    start = min(max(math.floor(value / unit), low), high)

    def first(candidates: Iterable[int]) -> list[Fraction]:
        fitting = (n for n in candidates if not any(misfit(*model) for model in at(n)))
        return [Fraction(n * unit) for n in islice(fitting, 1)]

    found = first(range(start, max(low, start - REACH) - 1, -1))
    found += first(range(start + 1, min(high, start + REACH) + 1))
    return [n for n in found if n < value][-1:] + [n for n in found if n > value][:1]


def _with(config: ModelConfig, field: Field, value: Fraction | int) -> ModelConfig:
    if field == "size":
        return replace(config, size=int(value))
    return replace(config, width=float(value))


def _wide_enough(model: Model) -> bool:
    config, classes = model
    return widths_of(config).outputs >= classes


def _too_wide(model: Model) -> bool:
    widths = widths_of(model[0])
    return max(widths.channels, widths.outputs) > MOST_CHANNELS or widths.kept > widths.channels


def _base(config: ModelConfig) -> int:
    """Return the channels of the first layer at width 1."""
    match config.kind:
        case "patchwise":
            return PATCHWISE_CHANNELS
        case "fc":
            return FC_WIDTH
        case "conv":
            return config.size
        case "std":
            return STD_WIDTH


def _scaled(base: int, width: float) -> int:
    try:
        return round(base * width)
    except OverflowError:  # beyond all floats
        return MOST_CHANNELS + 1
