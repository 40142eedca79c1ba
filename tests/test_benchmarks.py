import math

import numpy as np
import pytest
import torch

from aol.config import ModelConfig
from aol.layers import MaxMin
from aol.loss import offset_cross_entropy
from aol.models import architecture, build_model
from benchmarks import plain
from tests.golden_recipe import (
    drawn_batch,
    drawn_parameters,
    golden,
    images_from_tf,
    load_parameters,
    text,
    weight_from_tf,
    weight_to_tf,
    worst,
)

RESCALE = golden("rescale")
CASES = sorted(name.removesuffix("_K") for name in RESCALE.files if name.endswith("_K"))


@pytest.mark.parametrize("name", CASES)
def test_the_plain_rescaling_equals_the_authors(name):
    weight = weight_from_tf(RESCALE[f"{name}_K"]).requires_grad_()
    upstream = weight_from_tf(RESCALE[f"{name}_G"])
    rescaled = (plain.rescale_conv if weight.ndim == 4 else plain.rescale_dense)(weight)
    (gradient,) = torch.autograd.grad(rescaled, weight, upstream)

    assert worst(weight_to_tf(rescaled), RESCALE[f"{name}_f64_kernel"]) <= 1e-10
    assert worst(weight_to_tf(gradient), RESCALE[f"{name}_f64_grad"]) <= 1e-10


def test_the_plain_network_equals_the_authors():
    """
    AOL-Conv in float64: scores, and every parameter's gradient by its norm.
    """
    tag, file = "conv16_10", golden("models_float64")
    with torch.device("meta"):
        model = architecture(ModelConfig(kind="conv"), 10)
    shapes = text(file[f"{tag}_kernel_shapes"])
    load_parameters(model, drawn_parameters(shapes, seed=2026), torch.float64)
    network = plain.plain_copy(model)
    images, labels = drawn_batch(seed=7, count=4, classes=10)
    scores = network(images_from_tf(images))
    offset_cross_entropy(
        scores, torch.from_numpy(labels), offset=math.sqrt(2), temperature=1 / 4
    ).mean().backward()

    assert np.abs(scores.detach().numpy() - file[f"{tag}_scores"]).max() <= 1e-12
    norms = [
        (parameter.grad + (1e-3 * parameter.detach() if parameter.ndim > 1 else 0)).norm().item()
        for parameter in network.parameters()
    ]
    assert norms == pytest.approx(file[f"{tag}_grad_norms"], rel=1e-10)


@pytest.mark.parametrize("kind", ["patchwise", "fc", "std"])
def test_the_plain_copy_is_the_same_function(kind):
    model = build_model(ModelConfig(kind=kind, width=1 / 16), 10, torch.Generator().manual_seed(0))
    network = plain.plain_copy(model)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, MaxMin) for layer in network)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert next(model.parameters()).any()
