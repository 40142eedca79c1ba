"""The paper's training augmentation, for a batch on its own device.

Each image has its own random parameters. Order: hue, saturation, brightness, contrast, clip to
[0, 1], rotation, translation (two separate bilinear warps with reflected borders), horizontal flip.
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
class AugmentParams:
    """The random parameters of one batch, each of shape (N,).

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


def sample_params(images: Tensor, generator: torch.Generator) -> AugmentParams:
    """Sample parameters for images (N, C, H, W) from a generator on their device."""
    count, _, height, width = images.shape
    uniform = torch.rand(8, count, generator=generator, device=images.device)

    def between(row: int, low: float, high: float) -> Tensor:
        return low + (high - low) * uniform[row]

    return AugmentParams(
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
    """Return randomly augmented images. Shapes: (N, 3, H, W) float in [0, 1] -> the same."""
    return augment_with(images, sample_params(images, generator))


def augment_with(images: Tensor, params: AugmentParams) -> Tensor:
    """Return images augmented with given parameters. Shapes: (N, 3, H, W) -> the same."""
    x = adjust_hue_and_saturation(images, params.hue, params.saturation)
    x = x.add_(_per_image(params.brightness))
    x = adjust_contrast(x, params.contrast).clamp_(0, 1)
    return translate(rotate(x, params.angle), params.dx, params.dy, params.flip)


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def adjust_hue_and_saturation(images: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """Return images with `hue` added and `saturation` multiplied in HSV, in one conversion.

    Shapes: images (N, 3, H, W) in [0, 1], hue and saturation (N,) -> (N, 3, H, W), contiguous.
    """
    images = images.contiguous()
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    # Which channel is largest, as 1 or 0 to multiply with: torch.where is ten times as slow.
    is_red = torch.eq(value, red, out=torch.empty_like(value))
    is_green = torch.eq(value, green, out=torch.empty_like(value)).mul_(1 - is_red)
    is_blue = 1 - is_red - is_green
    sextant = (green - blue).mul_(is_red).addcmul_(blue - red, is_green)
    sextant.addcmul_(red - green, is_blue)
    sextant /= chroma + torch.eq(chroma, 0, out=is_red)
    sextant += is_green.mul_(2).add_(is_blue, alpha=4)
    sextant += 6 * hue[:, None, None]
    sextant -= sextant.div(6).floor_().mul_(6)
    vivid = chroma.mul_(saturation[:, None, None])
    chroma = torch.minimum(vivid, value)  # a saturation of 1 at most
    result = torch.empty_like(images)
    for channel, centre in enumerate((3.0, 2.0, 4.0)):  # red falls at its centre, the others rise
        distance = torch.sub(sextant, centre, out=result[:, channel]).abs_()
        fall = distance.neg_().add_(2) if channel == 0 else distance.sub_(1)
        torch.addcmul(value, fall.clamp_(0, 1), chroma, value=-1, out=result[:, channel])
    return result


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale each channel's distance from its own mean over the image by `factor` (N,)."""
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean).mul_(_per_image(factor)).add_(mean)


def rotate(images: Tensor, angle: Tensor) -> Tensor:
    """Rotate images about their centres by `angle` (N,) in radians.

    Coordinates are computed from the corner as in Keras, to have its rounding: computed from the
    centre they would be as accurate, and differ by a few 1e-6.
    """
    height, width = images.shape[2:]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    corner_x = ((width - 1) - (cos * (width - 1) - sin * (height - 1))) / 2
    corner_y = ((height - 1) - (sin * (width - 1) + cos * (height - 1))) / 2
    columns, rows = _indices(width, images), _indices(height, images)
    x = (cos * columns)[:, None, :] - (sin * rows)[:, :, None]
    y = (sin * columns)[:, None, :] + (cos * rows)[:, :, None]
    return _warp(images, x.add_(corner_x[:, None]), y.add_(corner_y[:, None]))


def translate(images: Tensor, dx: Tensor, dy: Tensor, flip: Tensor | None = None) -> Tensor:
    """Move images right by `dx` and down by `dy` (N,), in pixels, then mirror them where `flip`."""
    height, width = images.shape[2:]
    columns = _indices(width, images).expand(len(images), width)
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    x, y = columns - dx[:, None], _indices(height, images) - dy[:, None]
    return _warp(images, x[:, None, :], y[:, :, None])


def _indices(count: int, images: Tensor) -> Tensor:
    return torch.arange(count, dtype=images.dtype, device=images.device)


def _warp(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample images bilinearly at pixel coordinates, mirrored beyond the border.

    Shapes: images (N, C, H, W), x and y broadcast to (N, H, W) -> (N, C, H, W).
    """
    count, _, height, width = images.shape
    grid = images.new_empty(count, height, width, 2)
    grid[..., 0] = (x * (2 / width)).add_(1 / width - 1)
    grid[..., 1] = (y * (2 / height)).add_(1 / height - 1)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="reflection", align_corners=False
    )
