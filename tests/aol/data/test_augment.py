import colorsys
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aol.data.augment import (
    AugmentParams,
    adjust_contrast,
    adjust_hue_and_saturation,
    augment,
    augment_with,
    rotate,
    sample_params,
    translate,
)
from tests.support.golden_recipe import golden, images_from_tf, images_to_tf

GOLDEN = golden("augment")
IMAGES = images_from_tf(GOLDEN["img"], torch.float32)
SHIFTS = torch.tensor(GOLDEN["translations_dx_dy_px"])
MANY = torch.zeros(1, 1, 1, 1).expand(20_000, 3, 32, 32)
ZERO, ONE = torch.zeros(4), torch.ones(4)
NEUTRAL = AugmentParams(
    hue=ZERO,
    saturation=ONE,
    brightness=ZERO,
    contrast=ONE,
    angle=ZERO,
    dx=ZERO,
    dy=ZERO,
    flip=torch.zeros(4, dtype=torch.bool),
)


def values(name):
    return torch.tensor(GOLDEN[name], dtype=torch.float32)


GOLDEN_COLOURS = replace(
    NEUTRAL,
    hue=values("hue_vals"),
    saturation=values("saturation_vals"),
    brightness=values("brightness_vals"),
    contrast=values("contrast_vals"),
)
GOLDEN_WARPS = replace(NEUTRAL, angle=values("angles_rad"), dx=SHIFTS[:, 0], dy=SHIFTS[:, 1])


def difference(images, name):
    return np.abs(images_to_tf(images) - GOLDEN[name]).max()


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# --- TensorFlow's outputs ---


def test_each_colour_change_equals_tensorflows():
    colours = GOLDEN_COLOURS
    hue = adjust_hue_and_saturation(IMAGES, colours.hue, ONE)
    saturation = adjust_hue_and_saturation(IMAGES, ZERO, colours.saturation)

    assert difference(hue, "hue") <= 1.5e-6
    assert difference(saturation, "saturation") <= 1.5e-6
    assert difference(adjust_contrast(IMAGES, colours.contrast), "contrast") <= 5e-7


def test_brightness_is_added():
    """
    The stored result is before the clip: it leaves [0, 1].
    """
    brighter = IMAGES + GOLDEN_COLOURS.brightness[:, None, None, None]

    assert difference(brighter, "brightness") <= 1e-7
    only = replace(NEUTRAL, brightness=GOLDEN_COLOURS.brightness)
    torch.testing.assert_close(
        augment_with(IMAGES, only), brighter.clamp(0, 1), rtol=0, atol=1.5e-6
    )


def test_the_colour_chain_equals_tensorflows():
    """
    Hue, saturation, brightness, contrast, clip, in this order.
    """
    assert difference(augment_with(IMAGES, GOLDEN_COLOURS), "color_chain") <= 1.5e-6
    chain = adjust_hue_and_saturation(IMAGES, GOLDEN_COLOURS.hue, GOLDEN_COLOURS.saturation)
    chain = chain + GOLDEN_COLOURS.brightness[:, None, None, None]
    chain = adjust_contrast(chain, GOLDEN_COLOURS.contrast)
    assert chain.min() < 0
    assert chain.max() > 1
    assert difference(chain.clamp(0, 1), "color_chain") <= 1.5e-6


def test_each_warp_equals_keras():
    angle, dx, dy = GOLDEN_WARPS.angle, GOLDEN_WARPS.dx, GOLDEN_WARPS.dy

    assert difference(rotate(IMAGES, angle), "rotated") <= 1.5e-6
    assert difference(translate(IMAGES, dx, dy), "translated_only") <= 1.5e-6
    assert difference(translate(rotate(IMAGES, angle), dx, dy), "rotated_translated") <= 1.5e-6


def test_two_warps_differ_from_a_single_one():
    """
    Rotation and translation are two bilinear warps one after the other, in this order.
    """
    angle, dx, dy = GOLDEN_WARPS.angle, GOLDEN_WARPS.dx, GOLDEN_WARPS.dy

    assert difference(rotate(translate(IMAGES, dx, dy), angle), "rotated_translated") > 0.1


def test_rotation_turns_by_keras_matrix():
    """
    Its row (a0, a1, a2, b0, b1, b2, ...) maps the output pixel (x, y) to the input pixel (x', y'):
    x' = a0 x + a1 y + a2, y' = b0 x + b1 y + b2.
    """
    grid = torch.arange(32.0, dtype=torch.float64)
    ramp = torch.stack([grid.expand(32, 32), grid[:, None].expand(32, 32)])[None] / 31
    for angle, matrix in zip(GOLDEN["angles_rad"], GOLDEN["rotation_matrices8"], strict=True):
        turned = rotate(ramp, torch.tensor([angle]))[0] * 31
        for x, y in [(12, 9), (20, 18), (8, 22)]:
            assert turned[0, y, x] == pytest.approx(matrix[:3] @ [x, y, 1], abs=1e-4)
            assert turned[1, y, x] == pytest.approx(matrix[3:6] @ [x, y, 1], abs=1e-4)


def test_all_geometry_and_the_flip_equal_keras():
    """
    The stored `flip` is the rotated and translated image mirrored left to right.
    """
    flipped = replace(GOLDEN_WARPS, flip=torch.ones(4, dtype=torch.bool))

    assert difference(augment_with(IMAGES, GOLDEN_WARPS), "rotated_translated") <= 1.5e-6
    assert difference(augment_with(IMAGES, flipped), "flip") <= 1.5e-6


def test_the_whole_augmentation_clips_before_it_warps():
    every = replace(
        GOLDEN_COLOURS,
        angle=GOLDEN_WARPS.angle,
        dx=GOLDEN_WARPS.dx,
        dy=GOLDEN_WARPS.dy,
        flip=torch.tensor([True, False, True, False]),
    )
    chain = images_from_tf(GOLDEN["color_chain"], torch.float32)
    expected = translate(rotate(chain, every.angle), every.dx, every.dy)
    expected[[0, 2]] = expected[[0, 2]].flip(3)

    torch.testing.assert_close(augment_with(IMAGES, every), expected, rtol=0, atol=3e-6)


# --- formulas pixel by pixel ---


@given(
    pixel=st.tuples(*[st.integers(0, 255)] * 3),
    hue=st.floats(-0.5, 0.5),
    saturation=st.floats(0, 3),
)
@settings(max_examples=300)
def test_hue_and_saturation_change_in_hsv(pixel, hue, saturation):
    red, green, blue = (value / 255 for value in pixel)
    h, s, v = colorsys.rgb_to_hsv(red, green, blue)
    expected = colorsys.hsv_to_rgb((h + hue) % 1, min(max(s * saturation, 0), 1), v)

    image = torch.tensor([red, green, blue], dtype=torch.float64)[None, :, None, None]
    found = adjust_hue_and_saturation(
        image, torch.tensor([hue]).double(), torch.tensor([saturation]).double()
    )

    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_grey_and_black_pixels_are_unchanged():
    grey = torch.linspace(0, 1, 16).view(4, 1, 2, 2).expand(4, 3, 2, 2)

    changed = adjust_hue_and_saturation(grey, values("hue_vals"), values("saturation_vals"))
    torch.testing.assert_close(changed, grey)


def test_contrast_is_about_each_channels_own_mean():
    factor = torch.tensor([0.5, 1.0, 1.5, 2.0])
    changed = adjust_contrast(IMAGES, factor)

    for image in range(4):
        for channel in range(3):
            before, after = IMAGES[image, channel], changed[image, channel]
            assert after.mean() == pytest.approx(before.mean().item(), abs=1e-5)
            assert after.std() == pytest.approx(
                factor[image].item() * before.std().item(), rel=1e-4
            )


@pytest.mark.parametrize(("right", "down"), [(3, 0), (-2, 0), (0, 1), (0, -3), (2, -1)])
def test_translation_moves_right_and_down_and_mirrors_the_border(right, down):
    image = torch.rand(1, 3, 8, 6, generator=seeded(0), dtype=torch.float64)
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), (3, 3), (3, 3)], mode="symmetric")
    expected = padded[:, :, 3 - down : 11 - down, 3 - right : 9 - right]

    moved = translate(image, torch.tensor([float(right)]), torch.tensor([float(down)]))
    assert np.allclose(moved.numpy(), expected, atol=1e-12)


def test_positive_angles_turn_counterclockwise():
    image = torch.rand(1, 3, 8, 8, generator=seeded(0), dtype=torch.float64)
    quarter = torch.tensor([math.pi / 2], dtype=torch.float64)
    expected = np.rot90(image.numpy(), axes=(2, 3))

    assert np.allclose(rotate(image, quarter).numpy(), expected, atol=1e-9)


def test_neutral_numbers_change_nothing():
    torch.testing.assert_close(augment_with(IMAGES, NEUTRAL), IMAGES, rtol=0, atol=3e-6)


def test_images_of_a_batch_do_not_mix():
    numbers = sample_params(IMAGES, seeded(3))
    together = augment_with(IMAGES, numbers)

    for index in range(4):
        alone = AugmentParams(
            **{
                item.name: getattr(numbers, item.name)[index : index + 1]
                for item in fields(AugmentParams)
            }
        )
        torch.testing.assert_close(
            augment_with(IMAGES[index : index + 1], alone), together[index : index + 1]
        )


# --- the random numbers ---


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("hue", -0.02, 0.02),
        ("saturation", 0.3, 2.0),
        ("brightness", -0.1, 0.1),
        ("contrast", 0.5, 2.0),
        ("angle", -math.radians(5), math.radians(5)),
        ("dx", -3.2, 3.2),
        ("dy", -3.2, 3.2),
    ],
)
def test_numbers_fill_the_papers_ranges_evenly(name, low, high):
    numbers = getattr(sample_params(MANY, seeded(0)), name)
    shares = torch.histc(numbers, bins=10, min=low, max=high) / 20_000

    assert numbers.min() >= low
    assert numbers.max() <= high
    assert shares.sum() == pytest.approx(1)
    assert ((shares - 0.1).abs() < 0.01).all()


def test_half_of_the_images_are_flipped():
    flips = sample_params(MANY, seeded(0)).flip

    assert flips.dtype == torch.bool
    assert flips.float().mean() == pytest.approx(0.5, abs=0.02)


def test_numbers_are_drawn_independently():
    numbers = sample_params(MANY, seeded(0))
    table = np.array(
        [getattr(numbers, item.name).double().numpy() for item in fields(AugmentParams)]
    )
    correlation = np.corrcoef(table)

    assert np.abs(correlation - np.eye(len(table))).max() < 0.03


def test_shifts_follow_the_width_and_the_height():
    numbers = sample_params(torch.zeros(1, 1, 1, 1).expand(20_000, 3, 40, 10), seeded(0))

    assert numbers.dx.abs().max() == pytest.approx(1.0, abs=0.01)
    assert numbers.dy.abs().max() == pytest.approx(4.0, abs=0.04)


def test_the_generator_determines_the_result():
    first, again = augment(IMAGES, seeded(5)), augment(IMAGES, seeded(5))

    assert torch.equal(first, again)
    assert not torch.equal(first, augment(IMAGES, seeded(6)))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_augmented_images_stay_images(seed):
    before = IMAGES.clone()
    result = augment(IMAGES, seeded(seed))

    assert result.shape == IMAGES.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6
    assert torch.equal(before, IMAGES)
