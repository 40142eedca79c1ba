"""The order of the training images in an epoch."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from aol.config import Shuffle

AUTHORS_SEED = 1111  # of numpy, for the fixed order of the images
AUTHORS_BUFFER = 2_500  # images


def shuffled(images: int, shuffle: Shuffle, generator: torch.Generator) -> Tensor:
    """Return the order of an epoch: a permutation of the images' numbers, int64 on the CPU.

    "full" permutes all images. "authors" fixes one permutation for all epochs, then draws each
    image from a buffer of the next 2,500: images far apart in it never share a batch.
    Source: the authors' `data/` (numpy's seed 1111, then `tf.data.Dataset.shuffle(2500)`).
    """
    if shuffle == "full":
        return torch.randperm(images, generator=generator)
    return torch.from_numpy(_fixed_order(images)[_buffered(images, AUTHORS_BUFFER, generator)])


@cache
def _fixed_order(images: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    return np.random.RandomState(AUTHORS_SEED).permutation(images).astype(np.int64)


def _buffered(
    images: int, size: int, generator: torch.Generator
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Return 0, 1, ... as a buffer of this size emits them: each draw makes room for the next."""
    filled = min(size, images)
    room = torch.full((images,), filled)
    room[images - filled :] = torch.arange(filled, 0, -1)  # nothing is left to refill it
    draws = (torch.rand(images, generator=generator, dtype=torch.float64) * room).long().tolist()
    buffer, order = list(range(filled)), np.empty(images, np.int64)
    for place, draw in enumerate(draws):
        order[place] = buffer[draw]
        following = place + filled
        buffer[draw] = following if following < images else buffer[-1]
        if following >= images:
            buffer.pop()
    return order
