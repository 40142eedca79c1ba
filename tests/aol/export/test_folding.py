import json
import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from aol.certification.lipschitz import certify_network
from aol.certification.radius import Proof, floor_radius, make_certifier, prove_bound, radii
from aol.config import ModelConfig
from aol.export.folding import describe_layers, fold_network, network_divisors
from aol.layers.modules import AOLConv2d, AOLLinear, rescaled_once
from aol.layers.plain import LAYERS, build
from aol.models.architectures import build_model

KINDS = ("patchwise", "fc", "conv", "std")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    """
    Each architecture of the paper, narrow, with noise on every parameter.
    """
    generator = torch.Generator().manual_seed(1)
    made = build_model(
        ModelConfig(kind=request.param, width=1 / (64 if request.param == "fc" else 8)),
        10,
        generator,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return made.eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def scores(network, images):
    with torch.no_grad(), rescaled_once(network):
        return network(images)


def test_the_plain_network_has_the_scores_of_the_trained_one(model, images):
    apart = scores(fold_network(model), images) - scores(model, images)

    assert apart.abs().max() < 1e-5


def test_in_float64_the_scores_are_equal_to_1e_12(model, images):
    exact = fold_network(model, torch.float64)
    trained = scores(deepcopy(model).double(), images.double())

    assert (scores(exact, images.double()) - trained).abs().max() < 1e-12


def test_the_plain_network_has_no_aol_layers(model):
    left = {type(layer) for layer in fold_network(model).modules()}

    assert left <= {*LAYERS.values(), nn.Sequential}
    assert {nn.Linear, nn.Conv2d} & left


def test_a_layer_without_a_plain_equivalent_is_refused():
    with pytest.raises(TypeError, match="Dropout has no plain layer"):
        fold_network(nn.Sequential(nn.Dropout()))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_the_plain_network_can_be_scripted(model, images):
    plain = fold_network(model)

    assert torch.equal(torch.jit.script(plain)(images), plain(images))


def test_a_network_can_be_built_from_its_description(model, images):
    plain = fold_network(model)
    again = build(describe_layers(plain))
    again.load_state_dict(plain.state_dict())

    assert torch.equal(scores(again, images), scores(plain, images))


def test_padding_and_dilation_are_kept(images):
    torch.manual_seed(0)
    layer = AOLConv2d(3, 4, (3, 5), padding="valid", dilation=2)
    layer.weight.data.normal_()
    network = nn.Sequential(layer)
    again = build(describe_layers(fold_network(network)))
    again.load_state_dict(fold_network(network).state_dict())

    assert torch.allclose(scores(again, images), scores(network, images), atol=1e-6)


@pytest.mark.parametrize("padding", ["same", "valid", 0, 1, (0, 1)])
def test_layers_without_a_bias_are_kept(images, padding):
    network = nn.Sequential(AOLConv2d(3, 4, 3, padding=padding, bias=False))
    folded = fold_network(network)
    described = json.loads(json.dumps(describe_layers(folded)))
    again = build(described)
    again.load_state_dict(folded.state_dict())

    assert [*folded.state_dict()] == ["0.weight"]
    assert described[0]["bias"] is False
    assert torch.equal(scores(again, images), scores(folded, images))
    assert torch.allclose(scores(again, images), scores(network, images), atol=1e-6)
    proof = prove_bound(folded.double(), network_divisors(network))
    assert proof.lipschitz == pytest.approx(1, rel=1e-6)


def test_a_bias_is_not_described():
    """
    Stored descriptions of the paper's networks have no such argument.
    """
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Linear(3, 2))

    assert describe_layers(plain) == [
        {
            "layer": "Conv2d",
            "in_channels": 3,
            "out_channels": 4,
            "kernel_size": [3, 3],
            "padding": "same",
            "dilation": [1, 1],
        },
        {"layer": "Linear", "in_features": 3, "out_features": 2},
    ]


def test_rounded_weights_raise_the_bound_by_less_than_a_millionth_per_layer(model):
    plain = fold_network(model).double()
    proof = prove_bound(plain, network_divisors(model))
    weighted = [layer for layer in model if isinstance(layer, AOLConv2d | AOLLinear)]

    assert 1 <= proof.lipschitz < 1 + 1e-6 * len(weighted)
    assert 0 < proof.score_error < 1e-8


def test_the_bound_is_the_product_of_the_layers_and_not_below_1():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).double()
    network[0].weight.data = 2 * torch.eye(3).double()
    network[1].weight.data = 3 * torch.eye(2, 3).double()
    ones = [torch.ones(3), torch.ones(3)]

    assert prove_bound(network, ones, (3,)).lipschitz == pytest.approx(6, rel=1e-8)
    assert prove_bound(network[:1], ones, (3,)).lipschitz == pytest.approx(2, rel=1e-8)
    network[0].weight.data /= 100
    assert prove_bound(network[:1], ones, (3,)).lipschitz == 1


def test_a_layer_that_occurs_twice_counts_twice():
    layer = nn.Linear(3, 3).double()
    layer.weight.data = 2 * torch.eye(3).double()
    ones = [torch.ones(3), torch.ones(3)]

    assert prove_bound(nn.Sequential(layer, layer), ones, (3,)).lipschitz == pytest.approx(
        4, rel=1e-8
    )


def test_other_divisors_do_not_lower_the_bound(model):
    plain = fold_network(model).double()
    tight = prove_bound(plain, network_divisors(model)).lipschitz
    plain_ones = [torch.ones_like(one) for one in network_divisors(model)]

    assert prove_bound(plain, plain_ones).lipschitz >= tight - 1e-9


def test_in_float64_the_bound_is_that_of_the_certificate(model):
    exact = fold_network(model, torch.float64)
    found = prove_bound(exact, network_divisors(model))
    certificate = certify_network(
        deepcopy(model).double(), (3, 32, 32), iterations=1, restarts=1, steps=1
    )

    assert found.lipschitz == 1
    assert certificate.upper <= 1
    assert found.score_error == pytest.approx(certificate.score_error, rel=1e-6, abs=0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Conv2d(3, 3, 3, groups=3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Sigmoid(),
    ],
    ids=str,
)
def test_a_layer_without_a_bound_is_refused(layer):
    network = nn.Sequential(nn.Conv2d(3, 3, 1), layer).double()

    with pytest.raises(ValueError, match=r"^layer 1 \((Conv2d|Sigmoid)\)"):
        prove_bound(network, [torch.ones(3)] * 2)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-200])
def test_invalid_divisors_are_refused(value):
    bad = torch.tensor([1.0, value, 1.0], dtype=torch.float64)

    with pytest.raises(ValueError, match="has no positive divisor per input channel"):
        prove_bound(nn.Sequential(nn.Linear(3, 2)).double(), [bad], (3,))


@pytest.mark.parametrize("given", [[], [torch.ones(4)]])
def test_missing_divisors_are_refused(given):
    with pytest.raises(ValueError, match="has no positive divisor per input channel"):
        prove_bound(nn.Sequential(nn.Linear(3, 2)).double(), given, (3,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value):
    network = nn.Sequential(nn.Linear(3, 2)).double()
    network[0].weight.data[0, 0] = value

    with pytest.raises(ValueError, match="its weights are not finite"):
        prove_bound(network, [torch.ones(3)], (3,))


# --- radii ---


def test_the_radius_is_the_gap_minus_its_error_over_root_two_and_the_bound():
    scores = torch.tensor([[3.0, 1.0, 2.5], [0.0, 0.0, -1.0]], dtype=torch.float64)
    found = radii(scores, Proof(lipschitz=2.0, score_error=0.01))

    assert found[0].item() == pytest.approx((0.5 - math.sqrt(2) * 0.01) / (math.sqrt(2) * 2))
    assert found[1] == 0


def test_a_gap_within_the_rounding_error_has_a_radius_of_zero():
    scores = torch.tensor([[1.0, 1.0 + 1e-9]], dtype=torch.float64)

    assert radii(scores, Proof(1.0, 1e-9)) == 0
    assert radii(scores, Proof(1.0, 1e-10)) > 0


def test_scores_that_are_not_finite_are_refused():
    network = build(
        [{"layer": "Flatten"}, {"layer": "Linear", "in_features": 3072, "out_features": 2}]
    )
    network[1].bias.data[0] = math.nan
    certifier = make_certifier(network, [torch.ones(3072)], CPU)

    with pytest.raises(ValueError, match="scores are not finite"):
        certifier(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("radius", [0.0, 1e-9, 0.1, 0.123456, 0.1234567, 1 / 3, 2.9999999, 20.0])
def test_a_printed_radius_is_never_above_the_computed_one(radius):
    assert floor_radius(radius) <= radius < floor_radius(radius) + 1.001e-6
