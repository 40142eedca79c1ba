import itertools
import json
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aol.certification import chain
from aol.certification.bounds import Reach, upper_bound, weighted_bound
from aol.certification.certificate import TOLERANCE, LayerBound, LipschitzCertificate
from aol.certification.lipschitz import certify_network, largest_stretch
from aol.config import ModelConfig
from aol.layers import modules as layers
from aol.layers.modules import AOLConv2d, AOLLinear, MaxMin
from aol.layers.plain import FirstChannels, Flatten
from aol.models.architectures import build_model
from aol.ops.rescale import rescale_conv

SEEDS = st.integers(0, 2**32 - 1)
CHANNELS = st.integers(1, 4)
KERNELS = st.tuples(st.integers(1, 4), st.integers(1, 4))
IMAGES = (3, 32, 32)
pytestmark = pytest.mark.usefixtures("one_thread")
even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def disturbed(kind, *, spread, width=1 / 8, dtype=torch.float32):
    """
    A narrow network of the paper with noise on every parameter.
    """
    model = build_model(ModelConfig(kind=kind, width=width), 10, seeded(0)).to(dtype)
    generator = seeded(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += (spread * noise).to(dtype)
    return model


def norm(layer, *shape):
    """
    The largest singular value of a layer's explicit operator.
    """
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        columns = layer(basis) - layer(torch.zeros(1, *shape, dtype=torch.float64))
    return torch.linalg.matrix_norm(columns.flatten(1), 2).item()


# --- the proof ---


def bound_by_loops(weight, q):
    """
    The sum over j and all displacements of |V_ij| * q_j / q_i, from plain numbers.
    """
    outputs, inputs, rows, columns = weight.shape
    taps = list(itertools.product(range(rows), range(columns)))
    w = weight.tolist()
    sums = [0.0] * inputs
    for i, j in itertools.product(range(inputs), repeat=2):
        for y, x in itertools.product(range(1 - rows, rows), range(1 - columns, columns)):
            v = sum(
                w[o][i][row][column] * w[o][j][row + y][column + x]
                for o in range(outputs)
                for row, column in taps
                if (row + y, column + x) in taps
            )
            sums[i] += abs(v) * q[j] / q[i]
    return math.sqrt(max(sums))


@given(shape=st.tuples(*[st.integers(1, 3)] * 4), seed=SEEDS)
@settings(max_examples=30)
def test_the_bound_is_the_weighted_sum_of_the_gram_kernel(shape, seed):
    """
    And never below it: its own rounding is added.
    """
    raw = normal(*shape, seed=seed)
    weight = rescale_conv(raw)
    q = [
        math.hypot(*p.flatten()) / math.hypot(*w.flatten())
        for p, w in zip(raw.unbind(1), weight.unbind(1), strict=True)
    ]
    expected = bound_by_loops(weight, q)

    assert expected * (1 - 1e-15) <= upper_bound(weight, raw) <= expected * (1 + 1e-12)


@even_kernels
@given(
    channels=st.tuples(CHANNELS, CHANNELS),
    kernel=KERNELS,
    seed=SEEDS,
    same=st.booleans(),
    spread=st.sampled_from([1e-4, 1.0, 1e3]),
)
@settings(max_examples=30)
def test_no_operator_exceeds_its_bound(channels, kernel, seed, same, spread):
    """
    Whatever the weight: here the raw parameter itself, its own scale as the divisors, and ones.
    """
    layer = AOLConv2d(*channels, kernel, padding="same" if same else 0).double()
    layer.weight.data = spread * normal(*layer.weight.shape, seed=seed)
    raw = layer.weight.detach()
    rescaled = layer.rescaled().detach()
    found = norm(layer, channels[0], 5, 6)

    assert found <= upper_bound(rescaled, raw)
    assert found <= upper_bound(rescaled, torch.ones_like(raw)) * (1 + 1e-12)
    layer._kept = raw
    assert norm(layer, channels[0], 5, 6) <= upper_bound(raw, raw) * (1 + 1e-12)


@given(
    channels=st.tuples(CHANNELS, CHANNELS),
    kernel=KERNELS,
    seed=SEEDS,
    spread=st.sampled_from([1e-4, 1.0, 1e6]),
    dead=st.booleans(),
)
def test_the_bound_of_rescaled_weights_is_1(channels, kernel, seed, spread, dead):
    """
    Also with channels of very different sizes, where the plain sum of the rescaled weight's Gram
    kernel is larger.
    """
    raw = spread * normal(channels[1], channels[0], *kernel, seed=seed)
    raw *= torch.tensor([1.0, 1e3, 1e-3, 30.0])[: channels[0], None, None]
    if dead:
        raw[:, -1] = 0
    bound = upper_bound(rescale_conv(raw), raw)

    assert bound <= 1 + 1e-12
    assert upper_bound(rescale_conv(raw) * 1.01, raw) == pytest.approx(1.01 * bound, rel=1e-12)


def test_the_bound_includes_the_rounding_of_its_own_sums():
    """
    Sums of 64 products of 1 and -1 are exact, and all between different columns are 0. In general
    each could be off by 64 * 2**-52 of the 64 sizes in it, 64 times over: 4096 in all, to which
    its additions come.
    """
    columns = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(6):
        columns = torch.cat((torch.cat((columns, columns)), torch.cat((columns, -columns))), 1)
    assert torch.equal(columns.T @ columns, 64 * torch.eye(64, dtype=torch.float64))

    steps = (weighted_bound(columns, torch.ones(64).double()) ** 2 / 64 - 1) * 2**52
    assert 4096 + 4 * (64 + 64) <= steps <= 4096 + 4 * (64 + 64) + 20


def test_without_the_divisors_unequal_channels_would_fail():
    raw = torch.tensor([[10.0, 0.1], [0.0, 0.1]], dtype=torch.float64)
    weight = rescale_conv(raw[:, :, None, None])[:, :, 0, 0]

    assert upper_bound(weight, raw) <= 1
    assert upper_bound(weight, torch.ones_like(raw)) > 1.01


@pytest.mark.parametrize("positive", [False, True])
def test_float32_weights_exceed_1_by_rounding_alone(positive):
    """
    By 1e-7 and not by the tolerance; rounded to bf16 the same weight is refused.
    """
    layer = AOLLinear(700, 700)
    layer.weight.data = normal(700, 700, seed=0).float()
    if positive:
        layer.weight.data.abs_()
    weight, raw = layer.rescaled().detach(), layer.weight.detach()

    assert 1 < upper_bound(weight, raw) < 1 + TOLERANCE / 2
    assert upper_bound(weight.bfloat16(), raw) > 1 + 100 * TOLERANCE


# --- the search ---


@even_kernels
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 3, (2, 4)])
def test_power_iteration_finds_the_norm_from_below(padding, kernel):
    layer = AOLConv2d(3, 4, kernel, padding=padding).double()
    layer.weight.data = normal(*layer.weight.shape, seed=3)
    layer.bias.data.fill_(5.0)
    found = largest_stretch(layer, normal(1, 3, 7, 6, seed=4), 60)

    expected = norm(layer, 3, 7, 6)
    assert 0.995 * expected <= found <= expected * (1 + 1e-12)


def test_power_iteration_on_zeros_finds_0():
    layer = AOLLinear(3, 4, initialiser=lambda matrix, generator: matrix.zero_()).double()

    assert largest_stretch(layer, normal(1, 3, seed=0), 5) == 0


def test_the_steepest_pair_of_a_linear_network_is_its_norm():
    model = nn.Sequential(Flatten(), AOLLinear(12, 6)).double()
    model[1].weight.data = normal(6, 12, seed=5)
    found = certify_network(model, (3, 2, 2), steps=100).ratio

    expected = torch.linalg.matrix_norm(model[1].rescaled().detach(), 2).item()
    assert 0.999 * expected <= found <= expected * (1 + 1e-9)


def test_the_steepest_pair_of_a_chain_with_maxmin_is_approached():
    """
    Orthogonal layers and MaxMin keep every length locally: the answer is 1.
    """
    model = nn.Sequential(Flatten(), AOLLinear(12, 12), MaxMin(), AOLLinear(12, 12)).double()
    for layer in model[1], model[3]:
        layer.weight.data = torch.linalg.qr(normal(12, 12, seed=6)).Q

    assert 1 - 1e-4 < certify_network(model, (3, 2, 2)).ratio <= 1


def test_the_search_for_the_steepest_pair_is_not_limited_to_images():
    """
    The larger of x and 2 + x / 10, nearly: a pair of images is where the second one is larger.
    """
    model = nn.Sequential(AOLLinear(1, 2), MaxMin(), FirstChannels(1)).double()
    model[0].weight.data = torch.tensor([[1.0], [0.1]]).double()
    model[0].bias.data = torch.tensor([0.0, 2.0]).double()
    slope = model[0].rescaled()[0].item()

    assert certify_network(model, (1,), restarts=16, steps=1).ratio < 0.9 * slope
    assert certify_network(model, (1,), restarts=16).ratio == pytest.approx(slope, rel=1e-9)


# --- the certificate ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "width"), [("patchwise", 1 / 16), ("fc", 1 / 64), ("conv", 1 / 8), ("std", 1 / 8)]
)
def test_the_papers_networks_pass_with_any_weights(kind, width, dtype):
    found = certify_network(disturbed(kind, spread=0.05, width=width, dtype=dtype), IMAGES)

    assert found.violations == ()
    assert all(layer.lower <= layer.upper <= 1 + TOLERANCE for layer in found.layers)
    assert 0 < found.ratio <= found.upper
    assert found.score_error < 1e-8


def test_every_layer_with_weights_is_in_the_certificate():
    model = disturbed("conv", spread=0.05)
    names = [layer.name for layer in certify_network(model, IMAGES).layers]

    assert names == [
        f"layer {place} ({type(layer).__name__})"
        for place, layer in enumerate(model)
        if isinstance(layer, AOLConv2d | AOLLinear)
    ]


def test_a_layer_that_occurs_twice_counts_twice():
    layer = AOLLinear(12, 12)
    layer.weight.data = normal(12, 12, seed=2).float()
    once = certify_network(nn.Sequential(Flatten(), layer), (3, 2, 2))
    twice = certify_network(nn.Sequential(Flatten(), layer, layer), (3, 2, 2))

    assert [bound.name for bound in twice.layers] == ["layer 1 (AOLLinear)", "layer 2 (AOLLinear)"]
    assert twice.upper == pytest.approx(once.upper**2, rel=1e-15)
    assert twice.score_error > once.score_error
    assert twice.ratio <= twice.upper


def test_a_repeated_unknown_module_is_reported_once():
    unknown = nn.Sigmoid()

    with pytest.raises(ValueError, match=r"^layer 1 \(Sigmoid\) has [^;]*$"):
        certify_network(nn.Sequential(AOLLinear(3, 3), unknown, unknown), (3,))


def test_a_certificate_is_reproducible_and_leaves_the_model_unchanged():
    model = disturbed("conv", spread=0.05)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    first = certify_network(model, IMAGES)
    torch.manual_seed(2)

    assert certify_network(model, IMAGES) == first
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert LipschitzCertificate.from_dict(json.loads(json.dumps(first.as_dict()))) == first


def too_large(share):
    return lambda weight: rescale_conv(weight) * (1 + share)


def test_a_rescaling_that_is_1_percent_too_large_violates_every_bound(monkeypatch):
    monkeypatch.setattr(layers.AOLConv2d, "_rescale", staticmethod(too_large(0.01)))
    found = certify_network(disturbed("conv", spread=0.0), IMAGES)
    lines = iter(found.violations)

    for layer in found.layers:
        assert next(lines).startswith(f"{layer.name}: its bound is 1.0")
    for layer in found.layers:
        assert next(lines).startswith(f"{layer.name}: stretches an input by 1.0")
    assert found.upper == pytest.approx(1.01 ** len(found.layers), rel=1e-4)
    assert 1.2 < found.ratio < found.upper


@pytest.mark.parametrize(("excess", "violated"), [(2 * TOLERANCE, True), (TOLERANCE, False)])
def test_the_tolerance_is_where_violations_begin(monkeypatch, excess, violated):
    """
    A weight of the identity is rescaled to 1 - 5e-7.
    """
    monkeypatch.setattr(layers.AOLConv2d, "_rescale", staticmethod(too_large(excess)))
    found = certify_network(disturbed("conv", spread=0.0, dtype=torch.float64), IMAGES)

    assert bool(found.violations) == violated


def test_a_padding_that_the_proof_does_not_cover_is_found_by_the_search(monkeypatch):
    """
    The weight satisfies its bound, the layer as applied does not.
    """
    layer = AOLConv2d(1, 1, 3, padding=1)
    layer.weight.data.fill_(1.0)

    def reflecting(layer, x):
        padded = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return nn.functional.conv_transpose2d(padded, layer.rescaled(), padding=2)

    monkeypatch.setattr(AOLConv2d, "forward", reflecting)
    monkeypatch.setattr(chain, "AOL_FORWARDS", (reflecting,))
    (line, *_) = certify_network(nn.Sequential(layer), (1, 6, 6)).violations

    assert line.startswith("layer 0 (AOLConv2d): stretches an input by 1.")


@pytest.mark.parametrize(
    ("layer", "ratio", "expected"),
    [
        (LayerBound("a", 1.0, 1.0), 1.0, ()),
        (LayerBound("a", math.nan, 0.5), 0.5, ("a: its bound is nan, above 1.000001",)),
        (LayerBound("a", 0.5, 0.6), 0.4, ("a: stretches an input by 0.6, its bound is 0.5",)),
        (
            LayerBound("a", 0.5, 0.5),
            0.6,
            ("the network stretches a difference by 0.6, its bound is 0.5",),
        ),
        (
            LayerBound("a", 0.5, 0.5),
            math.nan,
            ("the network stretches a difference by nan, its bound is 0.5",),
        ),
    ],
)
def test_contradictions_to_a_bound_are_violations(layer, ratio, expected):
    found = LipschitzCertificate((layer,), ratio=ratio, score_error=0.0, tolerance=1e-6).violations

    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


def test_a_module_without_a_known_bound_is_refused():
    model = nn.Sequential(Flatten(), nn.Bilinear(12, 12, 4))

    with pytest.raises(ValueError, match=r"layer 1 \(Bilinear\) has no known Lipschitz bound: use"):
        certify_network(model, (3, 2, 2))


@pytest.mark.parametrize(("error", "upper"), [(0.0, 0.5), (0.5, 0.5), (0.5, 0.0)])
def test_size_and_error_of_an_input_are_multiplied_by_the_bound_of_a_layer(error, upper):
    """
    Sums of two products and a bias each; the norm of |W| is at most the root of 7 times 6.
    """
    weight = torch.tensor([[3.0, -4.0], [0.0, 2.0]], dtype=torch.float64)
    bias = torch.tensor([3.0, -4.0], dtype=torch.float64)
    found = Reach(10.0, error).after(weight, bias, upper, 9)

    offset = 5 * 3  # the bias at nine positions
    rounding = 2.0**-52 * 3 * (math.sqrt(7 * 6) * (10 + error) + offset)
    assert found.size == pytest.approx(upper * 10 + offset, rel=1e-15)
    assert found.error == pytest.approx(upper * error + rounding, rel=1e-12, abs=0)


def test_the_score_error_is_carried_from_the_image_through_every_layer():
    model = nn.Sequential(AOLConv2d(3, 4, 3, padding="valid"), MaxMin(), Flatten(), AOLLinear(8, 5))
    model = model.double()
    for index in (0, 3):
        model[index].weight.data = normal(*model[index].weight.shape, seed=index)
        model[index].bias.data = normal(*model[index].bias.shape, seed=index + 10)
    found = certify_network(model, (3, 3, 4))

    reach = Reach.of_images((3, 3, 4))
    for index, bound, positions in zip((0, 3), found.layers, (2, 1), strict=True):
        weight = model[index].rescaled().detach()
        reach = reach.after(weight, model[index].bias, bound.upper, positions)
    assert (reach.size, reach.error) != (6.0, 6 * 2.0**-52)
    assert found.score_error == pytest.approx(reach.error, rel=1e-12, abs=0)


def test_an_image_is_no_larger_than_a_white_one():
    assert Reach.of_images((1, 3, 3)) == Reach(3.0, 3 * 2.0**-52)


def test_float64_scores_are_within_the_score_error_of_the_certificate():
    """
    The reference applies the same weights as rational numbers.
    """
    model = nn.Sequential(Flatten(), AOLLinear(12, 8), MaxMin(), AOLLinear(8, 6), FirstChannels(3))
    model = model.double()
    for index in (1, 3):
        model[index].weight.data = normal(*model[index].weight.shape, seed=index)
        model[index].bias.data = normal(*model[index].bias.shape, seed=index + 10)
    pixels = torch.randint(256, (1, 3, 2, 2), generator=seeded(0))
    scores = model(pixels.double() / 255)[0].tolist()

    x = [Fraction(p, 255) for p in Flatten()(pixels)[0].tolist()]
    for layer in (model[1], model[3]):
        x = [
            sum((Fraction(w) * value for w, value in zip(row, x, strict=True)), Fraction(bias))
            for row, bias in zip(layer.rescaled().tolist(), layer.bias.tolist(), strict=True)
        ]
        if layer is model[1]:
            x = [one for i in range(0, 8, 2) for one in (max(x[i : i + 2]), min(x[i : i + 2]))]
    error = math.hypot(*(Fraction(found) - exact for found, exact in zip(scores, x, strict=False)))
    assert 0 < error <= certify_network(model, (3, 2, 2)).score_error < 1e-12
