import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import is_parametrized

from aol.layers.modules import (
    AOLConv2d,
    AOLLinear,
    MaxMin,
    in_float64,
    rescaled_once,
    rescaled_together,
)
from aol.layers.parametrization import parametrize, remove
from aol.ops.rescale import rescale_conv, rescale_dense

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = st.integers(0, 2**32 - 1)
even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(module, seed=0):
    """
    Return the module in float64 with normal parameters.
    """
    module = module.double()
    for index, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed + index)
    return module


def network():
    return filled(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=2), nn.ReLU()),
            nn.Flatten(),
            nn.Linear(4 * 36, 5, bias=False),
        )
    )


def images(seed=9):
    return normal(2, 3, 4, 4, seed=seed)


def norm(layer, *shape):
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        columns = layer(basis) - layer(torch.zeros(1, *shape, dtype=torch.float64))
    return torch.linalg.matrix_norm(columns.flatten(1), 2).item()


# --- parametrize ---


def test_layers_apply_the_papers_rescaling_of_their_weights():
    plain, model = network(), network()
    assert parametrize(model) is model

    assert torch.equal(model[0][0].weight, rescale_conv(plain[0][0].weight))
    assert torch.equal(model[2].weight, rescale_dense(plain[2].weight))
    assert torch.equal(model[2].parametrizations.weight.original, plain[2].weight)
    assert torch.equal(model[0][0].bias, plain[0][0].bias)


def test_outputs_are_those_of_aol_layers_with_the_same_raw_parameters():
    ours = nn.Sequential(AOLConv2d(3, 4, 3, padding=1), nn.Flatten(), AOLLinear(64, 5)).double()
    theirs = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 5)).double()
    filled(ours)
    theirs.load_state_dict(ours.state_dict())

    torch.testing.assert_close(parametrize(theirs)(images()), ours(images()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(2, 3, 3)])
def test_the_module_itself_may_be_the_layer(layer):
    raw = layer.weight.detach().clone()
    parametrize(layer)

    rescale = rescale_dense if raw.ndim == 2 else rescale_conv
    assert torch.equal(layer.weight, rescale(raw))
    assert isinstance(layer, nn.Linear | nn.Conv2d)


@even_kernels
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["same", "valid", 0, 1, 2, 7, (0, 5), (9, 1)]),
    dilation=st.sampled_from([1, 2, (1, 2)]),
    positive=st.booleans(),
    seed=SEEDS,
)
@settings(max_examples=40)
def test_any_zero_padding_and_dilation_has_a_norm_of_at_most_one(
    channels, kernel, padding, dilation, positive, seed
):
    """
    Of the explicit operator; positive kernels are the tight case.
    """
    layer = nn.Conv2d(*channels, kernel, padding=padding, dilation=dilation).double()
    layer.weight.data = normal(*layer.weight.shape, seed=seed)
    if positive:
        layer.weight.data.abs_()
    parametrize(layer)

    assert norm(layer, channels[0], 7, 8) <= 1 + 1e-12


def test_a_padding_as_wide_as_the_kernel_keeps_all_of_the_convolution():
    """
    A wider padding only adds zeros and keeps the norm. Narrower paddings do not have a larger one.
    """
    norms = []
    for padding in (0, 1, 2, 3, 9):
        layer = nn.Conv2d(1, 1, 3, padding=padding).double()
        layer.weight.data.fill_(1.0)
        norms.append(norm(parametrize(layer), 1, 6, 6))

    assert norms[0] < norms[1] < norms[2] < 1
    assert norms[3:] == pytest.approx([norms[2]] * 2, rel=1e-12)


def test_aol_layers_in_between_are_unchanged():
    model = nn.Sequential(AOLLinear(4, 4), MaxMin(), nn.Linear(4, 3))
    ours = model[0]
    parametrize(model)

    assert model[0] is ours
    assert type(ours) is AOLLinear
    assert is_parametrized(model[2])


def test_a_layer_that_occurs_twice_is_parametrized_once():
    layer = nn.Linear(3, 3)
    model = parametrize(nn.Sequential(layer, nn.ReLU(), layer))

    assert len(model[0].parametrizations.weight) == 1
    assert model[0] is model[2]


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledInside(nn.Conv2d):
    def _conv_forward(self, *given):
        return 2 * super()._conv_forward(*given)


def replaced():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: 2 * x
    return layer


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


UNPROVEN = [
    (nn.Conv2d(3, 4, 3, stride=2), r"layer 1 \(Conv2d\): stride must be 1, got \(2, 2\)"),
    (nn.Conv2d(4, 4, 3, groups=2), r"layer 1 \(Conv2d\): groups must be 1, got 2"),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), "padding_mode must be 'zeros', got '"),
    (nn.ConvTranspose2d(3, 4, 3), r"layer 1 \(ConvTranspose2d\): has parameters or buffers"),
    (nn.Conv1d(3, 4, 3), r"layer 1 \(Conv1d\): has parameters or buffers of its own"),
    (nn.BatchNorm2d(3), r"layer 1 \(BatchNorm2d\): has parameters or buffers of its own"),
    (nn.BatchNorm2d(3, affine=False), r"layer 1 \(BatchNorm2d\): has parameters or buffers"),
    (nn.PReLU(), r"layer 1 \(PReLU\): has parameters"),
    (Doubled(3, 3), r"layer 1 \(Doubled\): has parameters"),
    (DoubledInside(3, 4, 3), r"layer 1 \(DoubledInside\): has parameters"),
    (replaced(), r"layer 1 \(Linear\): has an attribute forward of its own; delete it"),
    (parametrizations.spectral_norm(nn.Linear(3, 3)), r"\(ParametrizedLinear\): is parametrized"),
    (parametrize(nn.Linear(3, 3)), r"layer 1 \(ParametrizedLinear\): is parametrized already"),
    (nn.LazyLinear(3), r"layer 1 \(LazyLinear\): has no weights yet"),
    (nn.Linear(3, 3, dtype=torch.complex64), r"layer 1 \(Linear\): has weights that are not real"),
    (tied(), r"layer 1.1 \(Linear\): shares its weight with 1.0"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize(("module", "message"), UNPROVEN, ids=lambda item: type(item).__name__)
def test_unproven_layers_are_refused_and_nothing_is_changed(module, message):
    model = nn.Sequential(nn.Linear(3, 3), module, nn.Linear(3, 3))
    before = list(model.state_dict())

    with pytest.raises(ValueError, match=rf"^parametrize: .*{message}") as caught:
        parametrize(model)
    assert str(caught.value).count("layer 1") == 1
    assert "layer 0" not in str(caught.value)
    assert list(model.state_dict()) == before
    assert not is_parametrized(model[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_an_old_weight_norm_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), torch.nn.utils.weight_norm(nn.Linear(3, 3)))

    with pytest.raises(ValueError, match=r"layer 1 .*computed weight; remove the weight_norm"):
        parametrize(model)


def test_every_problem_is_reported_at_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)))

    with pytest.raises(ValueError, match=r"layer 1\.0 \(Conv1d\): .*; layer 1\.1 \(BatchNorm1d\)"):
        parametrize(model)


@pytest.mark.parametrize("module", [nn.Sequential(), nn.ReLU(), AOLLinear(3, 3)])
def test_a_module_without_a_layer_to_parametrize_is_an_error(module):
    with pytest.raises(ValueError, match=r"^parametrize: there is no nn\.Linear or nn\.Conv2d"):
        parametrize(module)


def test_a_layer_alone_is_named_by_its_type():
    with pytest.raises(ValueError, match=r"the module \(Conv1d\)"):
        parametrize(nn.Conv1d(1, 1, 1))


# --- remove ---


def test_removing_keeps_the_rescaled_weights():
    model = parametrize(network())
    expected = model(images())
    weights = [model[0][0].weight.clone(), model[2].weight.clone()]
    assert remove(model) is model

    assert torch.equal(model(images()), expected)
    assert (type(model[0][0]), type(model[2])) == (nn.Conv2d, nn.Linear)
    assert torch.equal(model[0][0].weight, weights[0])
    assert torch.equal(model[2].weight, weights[1])
    assert set(model.state_dict()) == set(network().state_dict())
    assert model[2].weight.requires_grad


def test_removing_keeps_other_parametrizations():
    other = parametrizations.orthogonal(nn.Linear(3, 3))
    model = nn.Sequential(parametrize(nn.Linear(3, 3)), other)
    remove(model)

    assert not is_parametrized(model[0])
    assert is_parametrized(model[1])


@pytest.mark.parametrize("module", [nn.Linear(3, 3), AOLLinear(3, 3), nn.Sequential()])
def test_a_module_without_a_parametrization_to_remove_is_an_error(module):
    with pytest.raises(ValueError, match=r"^remove: no module in it is parametrized"):
        remove(module)


# --- use ---


def test_state_dicts_can_be_saved_and_loaded():
    model, other = parametrize(network()), parametrize(network())
    names = ["0.0.bias", "0.0.parametrizations.weight.original", "2.parametrizations.weight.ori"]
    assert [name[:29] for name in sorted(model.state_dict())] == [name[:29] for name in names]
    for parameter in other.parameters():
        parameter.data += 1
    other.load_state_dict(model.state_dict())

    assert torch.equal(other(images()), model(images()))


def test_a_deep_copy_is_independent():
    model = parametrize(network())
    copy = deepcopy(model)
    expected = model(images())
    copy[2].parametrizations.weight.original.data += 1

    assert torch.equal(model(images()), expected)
    assert not torch.equal(copy(images()), expected)


def test_training_changes_the_raw_parameters_and_keeps_the_bound():
    model = parametrize(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (model(images()) - 1).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < losses[0]
    assert norm(model[0][0], 3, 4, 4) <= 1 + 1e-12
    assert torch.linalg.matrix_norm(model[2].weight, 2) <= 1 + 1e-12


def test_gradients_are_those_of_aol_layers():
    ours, theirs = AOLLinear(6, 4).double(), nn.Linear(6, 4).double()
    filled(ours)
    theirs.load_state_dict(ours.state_dict())
    parametrize(theirs)
    for layer in (ours, theirs):
        layer(normal(3, 6, seed=5)).square().sum().backward()

    raw = theirs.parametrizations.weight.original
    torch.testing.assert_close(raw.grad, ours.weight.grad, rtol=1e-12, atol=0)
    assert torch.equal(theirs.bias.grad, ours.bias.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_types_are_converted(dtype):
    model = parametrize(network()).to(dtype)

    assert model(images().to(dtype)).dtype == dtype
    assert model[2].weight.dtype == dtype


def test_autocast_does_not_lower_the_precision_of_the_weight():
    layer = parametrize(nn.Linear(6, 4))
    expected = layer.weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)
        assert layer(torch.ones(1, 6)).dtype == torch.bfloat16


@pytest.mark.parametrize("block", [rescaled_once, rescaled_together])
def test_weights_are_kept_inside_the_blocks(block):
    """
    Also where layers share a shape, and with AOL layers beside them.
    """
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), AOLLinear(4, 4))
    parametrize(filled(model))
    x = normal(2, 4)
    expected = model(x)
    with block(model):
        assert model[0].weight is model[0].weight
        torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-14)

    assert model[0].weight is not model[0].weight
    model(x).sum().backward()
    assert model[2].parametrizations.weight.original.grad.abs().sum() > 0


def test_a_float64_copy_applies_the_float32_weights():
    model = parametrize(network().float())
    copy = in_float64(model)

    assert torch.equal(copy[2].weight, model[2].weight.double())
    assert torch.equal(copy[0][0].weight, model[0][0].weight.double())
    assert copy(images()).dtype == torch.float64
    assert model[2].weight.requires_grad
