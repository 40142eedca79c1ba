"""The paper's training augmentation, a batch at a time on the batch's own device.

Each image draws its own numbers. Order: hue, saturation, brightness, contrast, clip to [0, 1],
rotation, translation (two separate bilinear warps with reflected borders), horizontal flip.
Source: `data/` of the authors' code (tf.image and the Keras preprocessing layers).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

HUE = 0.02  # fraction of the colour circle, either way
SATURATION = (0.3, 2.0)
BRIGHTNESS = 0.1
CONTRAST = (0.5, 2.0)
ROTATION = math.radians(5)
TRANSLATION = 0.1  # fraction of the image's height and width


@dataclass(frozen=True)
class Draw:
    """The random numbers of one batch, each of shape (N,).

    `hue` is a fraction of the colour circle, `angle` in radians, `dx` and `dy` in pixels
    (positive moves the content right and down), `flip` is boolean.
    """

    hue: Tensor
    saturation: Tensor
    brightness: Tensor
    contrast: Tensor
    angle: Tensor
    dx: Tensor
    dy: Tensor
    flip: Tensor


def draw(images: Tensor, generator: torch.Generator) -> Draw:
    """Numbers for a batch of images (N, C, H, W), from a generator on the images' device."""
    count, _, height, width = images.shape
    uniform = torch.rand(8, count, generator=generator, device=images.device)

    def between(row: int, low: float, high: float) -> Tensor:
        return low + (high - low) * uniform[row]

    return Draw(
        hue=between(0, -HUE, HUE),
        saturation=between(1, *SATURATION),
        brightness=between(2, -BRIGHTNESS, BRIGHTNESS),
        contrast=between(3, *CONTRAST),
        angle=between(4, -ROTATION, ROTATION),
        dx=between(5, -TRANSLATION * width, TRANSLATION * width),
        dy=between(6, -TRANSLATION * height, TRANSLATION * height),
        flip=uniform[7] < 0.5,
    )


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augmented images. Shapes: (N, 3, H, W) float in [0, 1] -> the same."""
    return apply(images, draw(images, generator))


def apply(images: Tensor, numbers: Draw) -> Tensor:
    """Images augmented with given numbers. Shapes: (N, 3, H, W) -> the same."""
    x = adjust_hue_and_saturation(images, numbers.hue, numbers.saturation)
    x = adjust_contrast(x + _per_image(numbers.brightness), numbers.contrast).clamp(0, 1)
    x = translate(rotate(x, numbers.angle), numbers.dx, numbers.dy)
    return torch.where(_per_image(numbers.flip), x.flip(3), x)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def adjust_hue_and_saturation(images: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Images with `hue` added and `saturation` multiplied in HSV, in one trip there and back.

    Shapes: images (N, 3, H, W) in [0, 1], hue and saturation (N,) -> (N, 3, H, W).
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    safe = torch.where(chroma > 0, chroma, 1)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * hue[:, None, None]
    vivid = chroma / torch.where(value > 0, value, 1)
    chroma = value * (vivid * saturation[:, None, None]).clamp(0, 1)
    position = (sextant[:, None] + images.new_tensor([5.0, 3.0, 1.0])[:, None, None]) % 6
    fall = torch.minimum(position, 4 - position).clamp(0, 1)
    return value[:, None] - chroma[:, None] * fall


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Each channel's distance from its own mean over the image, times `factor` (N,)."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * _per_image(factor) + mean


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Images turned about their centres by `angle` (N,) in radians."""
    cos, sin = angle.cos(), angle.sin()
    height, width = images.shape[2:]
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    columns = torch.arange(width, dtype=images.dtype, device=images.device) - middle_x
    rows = torch.arange(height, dtype=images.dtype, device=images.device)[:, None] - middle_y
    cos, sin = cos[:, None, None], sin[:, None, None]
    return _warp(
        images, cos * columns - sin * rows + middle_x, sin * columns + cos * rows + middle_y
    )


def translate(images: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Images moved right by `dx` and down by `dy` (N,), in pixels."""
    count, _, height, width = images.shape
    columns = torch.arange(width, dtype=images.dtype, device=images.device)
    rows = torch.arange(height, dtype=images.dtype, device=images.device)[:, None]
    x = (columns - dx[:, None, None]).expand(count, height, width)
    y = (rows - dy[:, None, None]).expand(count, height, width)
    return _warp(images, x, y)


def _warp(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples at pixel coordinates (N, H, W); beyond the border the image is mirrored."""
    height, width = images.shape[2:]
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
