"""
The orders of an epoch: every image once, and the authors' near the fixed order.
"""

import numpy as np
import pytest
import torch

from aol.data.shuffle import AUTHORS_BUFFER, shuffled


def orders(shuffle, *, images=10_000, epochs=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [shuffled(images, shuffle, generator).numpy() for _ in range(epochs)]


@pytest.mark.parametrize("shuffle", ["full", "authors"])
@pytest.mark.parametrize("images", [1, 2, 2_499, 2_500, 2_501, 6_000])
def test_every_epoch_has_every_image_once_in_an_order_of_its_own(shuffle, images):
    first, second = orders(shuffle, images=images)

    assert np.array_equal(np.sort(first), np.arange(images))
    assert np.array_equal(np.sort(second), np.arange(images))
    assert images < 10 or not np.array_equal(first, second)
    assert np.array_equal(first, orders(shuffle, images=images, epochs=1)[0])


def test_the_full_shuffle_is_that_of_earlier_runs():
    """
    Their states hold the generator, and continue with the same orders.
    """
    generator = torch.Generator().manual_seed(5)

    assert torch.equal(
        shuffled(1_000, "full", torch.Generator().manual_seed(5)),
        torch.randperm(1_000, generator=generator),
    )


def test_the_authors_order_is_a_fixed_permutation_through_a_buffer():
    """
    An image is emitted at the earliest when it enters the buffer, and mostly soon after.
    """
    place = np.argsort(np.random.RandomState(1111).permutation(10_000))

    for order in orders("authors", epochs=5):
        fixed = place[order]  # of the image that comes n-th, its place in the fixed order
        assert np.all(fixed - np.arange(10_000) < AUTHORS_BUFFER)
        waits = np.arange(10_000)[: 10_000 - AUTHORS_BUFFER] - fixed[: 10_000 - AUTHORS_BUFFER]
        assert abs(np.median(waits + AUTHORS_BUFFER) / (np.log(2) * AUTHORS_BUFFER) - 1) < 0.2
        assert not np.array_equal(fixed, np.arange(10_000))


def test_in_a_full_buffer_every_image_is_equally_likely_to_come_first():
    firsts = [shuffled(5, "authors", torch.Generator().manual_seed(s))[0] for s in range(2_000)]
    counts = np.bincount(np.array(firsts), minlength=5)

    assert np.all(np.abs(counts / 2_000 - 0.2) < 4 * np.sqrt(0.16 / 2_000))
