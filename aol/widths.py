"""Which widths an architecture can have. Arithmetic alone, so asking does not need torch."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from aol.config import ModelConfig

PATCHWISE_CHANNELS = 192
FC_WIDTH = 4096
STD_WIDTH = 32
PATCHES = 8 * 8  # of 4 x 4 pixels
MOST_CHANNELS = 2**20  # a dense layer between so many has 4 TiB of weights
REACH = 1000  # how far to look for a value that fits, in steps of one channel


@dataclass(frozen=True)
class Widths:
    """The channel counts that follow from a model's kind, size and width."""

    channels: int  # of the first layer; MaxMin pairs these and multiples of them
    kept: int  # channels of the last convolution that "patchwise" goes on with, else `channels`
    outputs: int  # of the last layer, the widest of those after the first


def widths_of(config: ModelConfig) -> Widths:
    """The channel counts of `config`, whether they fit or not."""
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
    """Why there is no network of these widths, in one sentence; None if there is one."""
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


def neighbours(
    config: ModelConfig, classes: int, field: Literal["size", "width"]
) -> list[Fraction]:
    """The values of `field` next to the one that does not fit: below and above, where they are."""
    unit = Fraction(1, _base(config)) if field == "width" else Fraction(1)

    def at(step: int) -> ModelConfig:
        value = step * unit
        return replace(config, **{field: float(value) if field == "width" else int(value)})

    steps = range(1, MOST_CHANNELS + 1)
    low = 1 + bisect_left(steps, True, key=lambda n: widths_of(at(n)).outputs >= classes)
    high = bisect_left(steps, True, key=lambda n: _too_wide(widths_of(at(n))))
    now = min(getattr(config, field), 2.0**63) / unit
    start = min(max(math.floor(now), low), high)

    def first(candidates: Iterable[int]) -> list[int]:
        return next(([n] for n in candidates if misfit(at(n), classes) is None), [])

    found = first(range(start, max(low, start - REACH) - 1, -1))
    found += first(range(start + 1, min(high, start + REACH) + 1))
    sides = ([n for n in found if n < now][-1:], [n for n in found if n > now][:1])
    return [n * unit for side in sides for n in side]


def _base(config: ModelConfig) -> int:
    """The channels of the first layer at width 1."""
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


def _too_wide(widths: Widths) -> bool:
    return max(widths.channels, widths.outputs) > MOST_CHANNELS or widths.kept > widths.channels
