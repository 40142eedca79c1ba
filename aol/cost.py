"""What training takes, by arithmetic alone: asking does not need torch.

A kernel is rescaled in one of six ways, and which it takes is decided here, by its shape. With one
tap: matrix products, differentiated by autograd or by hand. With more: one convolution,
differentiated by autograd or by hand, a product per displacement, or the fewest products.

Shape letters as in `aol.rescale`: O output channels, I input channels, K x L taps.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from aol.config import ModelConfig, TrainConfig
from aol.widths import widths_of

IMAGE_SIZE = 32
IMAGE_CHANNELS = 3
NARROWEST = 24  # input channels; below, autograd is as fast as any gradient by hand: measured
NARROW = 72  # input channels; below, one convolution is faster than several products: measured
NARROW_DENSE = 256  # inputs; below, autograd is faster than a gradient by hand: measured
TOOM_COOK = 72  # input channels of 3 x 3 kernels; from here on fewer products pay: measured
BLOCK = 512  # halving smaller symmetric products costs what it saves: measured


@dataclass(frozen=True)
class Layer:
    """A layer with weights: `outputs` by `inputs` by `kernel`**2, on `side`**2 positions."""

    outputs: int
    inputs: int
    kernel: int = 1
    side: int = 1

    @property
    def weights(self) -> int:
        """How many weights it has, beside a bias per output."""
        return self.outputs * self.inputs * self.kernel**2

    @property
    def flop(self) -> int:
        """Floating-point operations of one image forward."""
        return 2 * self.weights * self.side**2

    @property
    def rescale_flop(self) -> int:
        """Floating-point operations of the products of one rescaling with its backward."""
        if self.kernel == 1:
            backward = 4 if self.inputs < NARROW_DENSE else 2  # autograd's has two products
            forward = _symmetric(self.outputs, self.inputs)
            return forward + backward * self.outputs * self.inputs**2
        if self.inputs < NARROW:
            return _narrow(self.outputs, self.inputs, self.kernel)
        if takes_toom_cook(self.inputs, self.kernel, self.kernel):
            return _toom_cook(self.outputs, self.inputs)
        return _half_plane(self.outputs, self.inputs, self.kernel)


def takes_toom_cook(inputs: int, rows: int, columns: int) -> bool:
    """Whether a kernel's Gram kernel is had as in `aol.toom_cook`."""
    return rows == columns == 3 and inputs >= TOOM_COOK


def layers_of(config: ModelConfig) -> list[Layer]:
    """The layers with weights of the network of `config`, first to last."""
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
    """How many numbers the network of `config` learns."""
    return sum(layer.weights + layer.outputs for layer in layers_of(config))


def training_flop(config: TrainConfig) -> float:
    """Floating-point operations of one whole training run.

    Counted are the products of the layers (forward, and twice that backward), of the rescaling
    in every step, and of the evaluations, whose test set is taken for a fifth of the training
    set. Everything else is small beside them.
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


def _symmetric(rows: int, size: int) -> int:
    """Rows^T rows, in blocks."""
    if size <= BLOCK:
        return 2 * rows * size**2
    first, second = size // 2, size - size // 2
    return _symmetric(rows, first) + _symmetric(rows, second) + 2 * rows * first * second


def _narrow(outputs: int, inputs: int, kernel: int) -> int:
    """One convolution of the kernel with itself, and one for the gradient; autograd takes two."""
    convolutions = 3 if inputs < NARROWEST else 2
    return convolutions * 2 * outputs * inputs**2 * kernel**2 * (2 * kernel - 1) ** 2


def _toom_cook(outputs: int, inputs: int) -> int:
    """20 products and 25, of sums of taps and of weights."""
    products = 2 * outputs * inputs**2 * (20 + 25)
    sums_of_taps = outputs * inputs * (20 * 2 * 2 * 9 + 5 * 2 * (2 * 5 * 9))
    sums_of_weights = inputs**2 * 5 * 2 * (5 * 5 + 5 * 5)
    return products + sums_of_taps + sums_of_weights


def _half_plane(outputs: int, inputs: int, kernel: int) -> int:
    """A product per displacement and tap pair, and two for the gradient."""
    taps = kernel**2
    displaced = (taps**2 - taps) // 2  # pairs of different taps
    product = 2 * outputs * inputs**2
    return _symmetric(taps * outputs, inputs) + product * (taps + 3 * displaced)
