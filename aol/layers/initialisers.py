"""The paper's initialisers; the rescaling leaves the weights that they draw as they are."""

from typing import Protocol

import torch
from torch import Tensor, nn


class Initialiser(Protocol):
    """A function that fills a matrix (outputs, inputs) in place; most of `torch.nn.init` fit."""

    def __call__(self, tensor: Tensor, /, *, generator: torch.Generator | None) -> object: ...


def identity_(matrix: Tensor, generator: torch.Generator | None = None) -> None:
    """Fill `matrix` with the identity; `generator` is not used.

    Shapes: (outputs, inputs).
    Source: `layers/initializers/convolutional_center_initializers.py` of the authors' code; the
        layers fill the spatial centre of their kernels with it.
    """
    nn.init.eye_(matrix)


def repeated_orthogonal_(matrix: Tensor, generator: torch.Generator | None = None) -> None:
    """Fill `matrix` with an orthogonal map; where it narrows, inputs share directions.

    With inputs <= outputs the columns are orthonormal. Otherwise each input's column is drawn
    with replacement from an orthonormal basis of the outputs and divided by the square root
    of how often that basis vector was drawn.

    Shapes: (outputs, inputs), on the device of `generator`.
    Source: `layers/initializers/repeated_orthogonal_initializer.py` of the authors' code.
    """
    outputs, inputs = matrix.shape
    if inputs <= outputs:
        nn.init.orthogonal_(matrix, generator=generator)
        return
    basis = matrix.new_empty(outputs, outputs)
    nn.init.orthogonal_(basis, generator=generator)
    drawn = torch.randint(outputs, (inputs,), generator=generator, device=matrix.device)
    counts = torch.bincount(drawn, minlength=outputs)
    with torch.no_grad():
        matrix.copy_(basis[:, drawn] / counts[drawn].sqrt())
