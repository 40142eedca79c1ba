import math

import numpy as np
import pytest
import torch

from aol.config import ModelConfig
from aol.layers.modules import (
    AOLConv2d,
    AOLLinear,
    ConcatenationPooling,
    MaxMin,
    identity_,
    rescaled_once,
)
from aol.layers.plain import FirstChannels, Flatten
from aol.models.architectures import architecture, build_model
from aol.training.loss import offset_cross_entropy
from aol.training.metrics import certified, correct, margins
from tests.support.golden_recipe import (
    drawn_batch,
    drawn_parameters,
    golden,
    images_from_tf,
    images_to_tf,
    load_parameters,
    text,
    weight_to_tf,
    worst,
)

# The authors' tag, our kind, the size parameter, the classes.
MODELS = {
    "patch16_10": ("patchwise", 16, 10),
    "patch32_10": ("patchwise", 32, 10),
    "patch48_100": ("patchwise", 48, 100),
    "ffc16_10": ("fc", 16, 10),
    "conv16_10": ("conv", 16, 10),
    "std_conv16_10": ("std", 16, 10),
}
LAYER_NAMES = {
    "AOLConv2D": AOLConv2d,
    "AOLDense": AOLLinear,
    "ConcatenationPooling": ConcatenationPooling,
    "FirstChannels": FirstChannels,
    "Flatten": Flatten,
    "MaxMinActivation": MaxMin,
}
# The fast cases run without `-m slow`. The two of 130 million parameters are checked in float32
# only, as float64 takes minutes, and with the gradients of their first and last weights alone:
# these and the input's gradient pass through every layer.
LARGEST = ["ffc16_10", "patch48_100"]
FAST = [(tag, torch.float64) for tag in ("patch16_10", "conv16_10")]
FAST.append(("conv16_10", torch.float32))
CASES = [
    pytest.param((tag, dtype), id=f"{tag}-{str(dtype).removeprefix('torch.')}", marks=marks)
    for tag in MODELS
    for dtype in (torch.float64, torch.float32)
    if dtype == torch.float32 or tag not in LARGEST
    for marks in [() if (tag, dtype) in FAST else pytest.mark.slow]
]


class Passed:
    """
    One forward and backward pass of a full model on the authors' weights and images.
    """

    def __init__(self, tag, dtype):
        self.tag, self.dtype = tag, dtype
        file = golden("models_float64" if dtype == torch.float64 else "models_float32")
        self.reference = {
            name.removeprefix(f"{tag}_"): file[name] for name in file.files if name.startswith(tag)
        }
        kind, size, classes = MODELS[tag]
        model = architecture(ModelConfig(kind=kind, size=size), classes)
        shapes = text(self.reference["kernel_shapes"])
        self.layers = load_parameters(model, drawn_parameters(shapes, seed=2026), dtype)
        if tag in LARGEST and dtype == torch.float32:
            for layer in self.layers[1:-1]:
                layer.weight.requires_grad_(False)
        self.kinds = [type(layer) for layer in model]
        images, labels = drawn_batch(seed=7, count=4, classes=classes)
        self.images = images_from_tf(images, dtype).requires_grad_()

        self.norms = []
        scores = self.images
        for layer in model:
            scores = layer(scores)
            self.norms.append(scores.detach().norm().item())
        rows = offset_cross_entropy(
            scores, torch.from_numpy(labels), offset=math.sqrt(2), temperature=1 / 4
        )
        self.scores, self.data_loss = scores.detach().numpy(), rows.detach().mean().item()
        self.reg_loss = 5e-4 * sum(
            layer.weight.detach().square().sum().item() for layer in self.layers
        )
        rows.mean().backward()
        with torch.no_grad():  # the L2 term's gradient, 2 * l2 * weight
            for layer in self.layers:
                if layer.weight.requires_grad:
                    layer.weight.grad += 2 * 5e-4 * layer.weight
        self.parameters = sum(
            parameter.numel() for layer in self.layers for parameter in layer.parameters()
        )
        self.gradients = self.summary()
        for layer in self.layers:  # gigabytes; the numbers above are what the tests need
            layer.weight = layer.bias = None

    def summary(self):
        """
        Return index, norm, largest and first sixteen entries of each parameter in TensorFlow's
        order.
        """
        found = []
        for index, layer in enumerate(self.layers):
            for offset, parameter in enumerate((layer.weight, layer.bias)):
                if parameter.grad is not None:
                    array = weight_to_tf(parameter.grad) if offset == 0 else parameter.grad.numpy()
                    first = array.reshape(-1)[:16].copy()
                    found.append(
                        (2 * index + offset, np.linalg.norm(array), np.abs(array).max(), first)
                    )
        return found


@pytest.fixture(scope="module", params=CASES)
def passed(request):
    return Passed(*request.param)


def limit(passed, *, float64, float32):
    return float64 if passed.dtype == torch.float64 else float32


def test_layers_are_the_authors(passed):
    theirs = [LAYER_NAMES[name] for name in text(passed.reference["layers"])]

    assert passed.kinds == theirs
    assert passed.parameters == passed.reference["n_params"]


def test_every_layers_output_has_the_authors_norm(passed):
    bound = limit(passed, float64=1e-13, float32=2e-5)

    assert passed.norms == pytest.approx(passed.reference["layer_output_norms"], rel=bound)


def test_scores_equal_the_authors(passed):
    bound = limit(passed, float64=1e-13, float32=2.5e-5)

    assert np.abs(passed.scores - passed.reference["scores"]).max() <= bound


def test_losses_equal_the_authors(passed):
    """
    Theirs is the mean offset cross-entropy, and 5e-4 times the sum of all squared raw weights.
    """
    exact = limit(passed, float64=1e-13, float32=1e-5)
    mean = limit(passed, float64=1e-13, float32=2e-5)  # of scores that are off by as much

    assert passed.data_loss == pytest.approx(float(passed.reference["data_loss"]), abs=mean)
    assert passed.reg_loss == pytest.approx(float(passed.reference["reg_loss"]), rel=exact)


def test_the_images_gradient_equals_the_authors(passed):
    bound = limit(passed, float64=1e-12, float32=5e-5)
    gradient = images_to_tf(passed.images.grad)
    sample = passed.reference["input_grad_sample"]

    assert worst(gradient[0, :4, :4], sample) <= bound
    norm = float(passed.reference["input_grad_norm"])
    assert np.linalg.norm(gradient) == pytest.approx(norm, rel=bound)


def test_parameters_gradients_equal_the_authors(passed):
    """
    Norms, and the first sixteen entries in TensorFlow's order, of the largest entry's size.
    """
    norms, firsts = passed.reference["grad_norms"], passed.reference["grad_first16"]
    complete = passed.tag not in LARGEST
    assert len(passed.gradients) == (len(norms) if complete else len(norms) // 2 + 2)

    for index, norm, largest, first in passed.gradients:
        assert norm == pytest.approx(norms[index], rel=limit(passed, float64=1e-12, float32=3e-4))
        error = np.abs(first - firsts[index][: len(first)]).max()
        assert error <= largest * limit(passed, float64=1e-12, float32=3e-5)


# --- building ---

NARROW = [
    ModelConfig(kind="patchwise", width=1 / 16),
    ModelConfig(kind="fc", width=1 / 64),
    ModelConfig(kind="conv", width=1 / 8),
    ModelConfig(kind="std", width=1 / 8),
]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def kind_of(config):
    return config.kind


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
@pytest.mark.parametrize("classes", [2, 10])
def test_images_become_scores(config, classes):
    model = build_model(config, classes, seeded(0))
    images = torch.rand(3, 3, 32, 32, generator=seeded(1))

    assert model(images).shape == (3, classes)


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_the_generator_determines_the_weights(config):
    first, again, other = (build_model(config, 10, seeded(seed)).state_dict() for seed in (1, 1, 2))

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def drawn_before(layer, generator):
    """
    Return a layer's weight from the paper's initialisers, drawn step by step.
    """
    outputs, inputs, *taps = layer.weight.shape
    if layer.initialiser is identity_:
        matrix = torch.eye(outputs, inputs)
    elif inputs <= outputs:
        matrix = torch.nn.init.orthogonal_(torch.empty(outputs, inputs), generator=generator)
    else:
        basis = torch.nn.init.orthogonal_(torch.empty(outputs, outputs), generator=generator)
        drawn = torch.randint(outputs, (inputs,), generator=generator)
        matrix = basis[:, drawn] / torch.bincount(drawn, minlength=outputs)[drawn].sqrt()
    weight = torch.zeros(layer.weight.shape)
    weight[(..., *((size - 1) // 2 for size in taps))] = matrix
    return weight


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_weights_are_drawn_once_in_the_order_of_the_layers(config):
    """
    They are equal to the last bit, because checkpoints and published numbers depend on it. Torch's
    own generator is not used.
    """
    before = torch.random.get_rng_state()
    ours, theirs = seeded(5), seeded(5)
    model = build_model(config, 10, ours)

    for layer in model:
        if isinstance(layer, AOLConv2d | AOLLinear):
            assert torch.equal(layer.weight, drawn_before(layer, theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_an_architecture_has_no_memory_until_it_is_filled(config):
    model = architecture(config, 10)
    trained = build_model(config, 10, seeded(0))

    assert all(parameter.is_meta for parameter in model.parameters())
    filled = model.to_empty(device="cpu")
    filled.load_state_dict(trained.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=seeded(1))
    torch.testing.assert_close(filled(images), trained(images))


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_weights_are_initialised_as_in_the_paper(config):
    """
    Biases are 0; weights keep their input or drop channels, so rescaling changes nothing.
    """
    for layer in build_model(config, 10, seeded(0)):
        if isinstance(layer, AOLConv2d | AOLLinear):
            assert (layer.bias == 0).all()
            assert layer.weight.norm() > 0
            torch.testing.assert_close(layer.rescaled(), layer.weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_square_layers_start_as_the_identity_as_in_the_paper(config):
    """
    Only AOL-Conv's square layers after a pooling and before its second are orthogonal.
    """
    squares = [
        layer
        for layer in build_model(config, 10, seeded(0))
        if isinstance(layer, AOLConv2d | AOLLinear)
        and layer.weight.shape[0] == layer.weight.shape[1]
    ]
    identities = 0
    for layer in squares:
        size = layer.weight.shape[2:]
        centre = tuple((taps - 1) // 2 for taps in size)
        matrix = layer.weight[(slice(None), slice(None), *centre)]
        identities += torch.equal(matrix, torch.eye(len(matrix)))

    orthogonal = {"patchwise": 0, "fc": 0, "conv": 5, "std": 0}[config.kind]
    assert len(squares) - identities == orthogonal


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_width_multiplies_every_width(config):
    whole = architecture(ModelConfig(kind=config.kind), 10)
    narrow = architecture(config, 10)

    for large, small in zip(whole, narrow, strict=True):
        assert type(large) is type(small)
        if isinstance(large, AOLConv2d | AOLLinear):
            assert small.weight.shape[0] == large.weight.shape[0] * config.width


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_networks_are_1_lipschitz_with_any_weights(config):
    """
    The Jacobian's largest singular value at an image, in float64.
    """
    model = build_model(config, 10, seeded(0)).double()
    generator = seeded(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(
            parameter.shape, generator=generator, dtype=torch.float64
        )
    image = torch.rand(1, 3, 32, 32, generator=generator, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(model, image)[0].flatten(1)

    assert jacobian.abs().max() > 0
    assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-12


def test_no_attack_flips_a_certified_image():
    """
    The attack takes gradient steps on the margin, projected to the radius. It does flip images
    without a certificate.
    """
    generator = seeded(0)
    model = build_model(ModelConfig(kind="conv", width=1 / 8), 10, generator).double()
    images = torch.rand(64, 3, 32, 32, generator=generator, dtype=torch.float64)
    images *= torch.rand(64, 3, 1, 1, generator=generator, dtype=torch.float64)
    radius = 108 / 255
    with torch.no_grad():
        labels = model(images).argmax(1)
        held = certified(model(images), labels, radius)
    change = torch.zeros_like(images)

    with rescaled_once(model):
        for _ in range(10):
            change.requires_grad_()
            (gradient,) = torch.autograd.grad(margins(model(images + change), labels).sum(), change)
            size = gradient.flatten(1).norm(dim=1)[:, None, None, None]
            change = change.detach() - 0.1 * gradient / size
            size = change.flatten(1).norm(dim=1)[:, None, None, None]
            change *= (radius / size).clamp(max=1)
        attacked = correct(model(images + change), labels)

    assert held.any()
    assert attacked[held].all()
    assert not attacked.all()


@pytest.mark.parametrize("config", NARROW, ids=kind_of)
def test_kept_weights_do_not_change_a_networks_scores(config):
    model = build_model(config, 10, seeded(0))
    images = torch.rand(3, 3, 32, 32, generator=seeded(1))
    with torch.no_grad():
        expected = model(images)
        with rescaled_once(model):
            assert torch.equal(model(images), expected)


def test_weights_are_kept_channels_last():
    model = build_model(NARROW[2], 10, seeded(0))

    assert all(
        layer.weight.is_contiguous(memory_format=torch.channels_last)
        for layer in model
        if isinstance(layer, AOLConv2d)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(kind="fc", width=6 / 4096), "the last layer has 6 outputs, 10 classes"),
        (ModelConfig(kind="conv", size=1, width=1 / 16), "the last layer has 0 outputs, 10"),
        (ModelConfig(kind="patchwise", width=15 / 192), r"every width must be even, not 15"),
        (ModelConfig(kind="conv", size=3), r"every width must be even, not 3"),
        (ModelConfig(kind="std", width=5 / 32), r"every width must be even, not 5"),
        (ModelConfig(kind="fc", width=0.01), r"every width must be even, not 41"),
    ],
)
def test_widths_that_do_not_fit_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(config, 10, seeded(0))


def test_a_size_above_the_convolutions_channels_is_refused():
    """
    192 channels cannot give 200. Without this check the first batch fails in a matrix product.
    """
    with pytest.raises(ValueError, match="size"):
        architecture(ModelConfig(kind="patchwise", size=200), 10)
