"""The cost of training in floating-point operations, by arithmetic alone, without torch.

A layer's shape decides how its kernel is rescaled: see `aol.ops.algorithms`.

Shape letters as in `aol.ops.rescale`: O output channels, I input channels, K x L taps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from aol.catalog import IMAGE_CHANNELS, IMAGE_SIZE
from aol.config import ModelConfig, TrainConfig
from aol.models.widths import widths_of
from aol.ops.algorithms import rescale_flop


@dataclass(frozen=True)
class Layer:
    """A layer with weights: `outputs` by `inputs` by `kernel`**2, on `side`**2 positions."""

    outputs: int
    inputs: int
    kernel: int = 1
    side: int = 1

    @property
    def weights(self) -> int:
        """Return the number of weights, without a bias per output."""
        return self.outputs * self.inputs * self.kernel**2

    @property
    def flop(self) -> int:
        """Return the floating-point operations of one image forward."""
        return 2 * self.weights * self.side**2

    @property
    def rescale_flop(self) -> int:
        """Return the floating-point operations of the products of one rescaling with backward."""
        return rescale_flop(self.outputs, self.inputs, self.kernel)


def layers_of(config: ModelConfig) -> list[Layer]:
    """Return the layers with weights of the network of `config`, first to last."""
    widths = widths_of(config)
    match config.kind:
        case "patchwise":
            return list(_patchwise(widths.channels, widths.outputs))
        case "fc":
            first = Layer(widths.channels, IMAGE_CHANNELS * IMAGE_SIZE**2)
            return [first, *[Layer(widths.channels, widths.channels)] * 7]
        case "conv":
            return list(_conv(widths.channels))
        case "std":
            return list(_std(widths.channels))


def parameters(config: ModelConfig) -> int:
    """Return the number of parameters of the network of `config`."""
    return sum(layer.weights + layer.outputs for layer in layers_of(config))


def training_flop(config: TrainConfig) -> float:
    """Return the floating-point operations of a whole training run.

    It counts the products of the layers (forward, and twice that backward), of the rescaling in
    every step, and of the evaluations, on a test set of a fifth of the training set. Everything
    else is small in comparison.
    """
    layers = layers_of(config.model)
    forward = sum(layer.flop for layer in layers)
    rescale = sum(layer.rescale_flop for layer in layers)
    images = config.data.train_images
    steps = config.epochs * math.ceil(images / config.batch_size)
    evaluations = math.ceil(config.epochs / config.eval_every)
    passes = 3 * config.epochs + evaluations / 5
    return passes * images * forward + steps * rescale


def _patchwise(channels: int, features: int) -> Iterator[Layer]:
    patch, side = 4, IMAGE_SIZE // 4
    yield Layer(channels, IMAGE_CHANNELS * patch**2, 1, side)
    yield from [Layer(channels, channels, 3, side)] * 12
    yield Layer(channels, channels, 1, side)
    yield from [Layer(features, features)] * 14


def _conv(width: int) -> Iterator[Layer]:
    last, side = 64 * width, IMAGE_SIZE
    blocks = [(IMAGE_CHANNELS, width, 3), (width, 4 * width, 3), (4 * width, 16 * width, 3)]
    for inputs, outputs, kernel in [*blocks, (16 * width, last, 1)]:
        side //= 2
        yield Layer(outputs, 4 * inputs, 1, side)
        yield from [Layer(outputs, outputs, kernel, side)] * 4
    yield Layer(last, last, 1, side)
    yield Layer(last, last)  # four pixels of a quarter of the channels
    yield from [Layer(last, last)] * 5


def _std(width: int) -> Iterator[Layer]:
    side = IMAGE_SIZE
    yield Layer(width, IMAGE_CHANNELS, 1, side)
    for _ in range(5):
        yield from [Layer(width, width, 3, side)] * 4
        side //= 2
        yield Layer(2 * width, 4 * width, 1, side)
        width *= 2
    yield Layer(width, width)
