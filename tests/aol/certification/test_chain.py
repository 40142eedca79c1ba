"""
Chains of modules: bounds and rounding errors of standard modules, plain layers, declared bounds,
and modules that are refused.
"""

import json
import math
from collections import OrderedDict
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jacrev
from torch.nn.utils import parametrizations

from aol.certification.bounds import Reach, tight_divisors, upper_bound, weighted_bound
from aol.certification.certificate import TOLERANCE, LayerBound, LipschitzCertificate
from aol.certification.chain import leaves, prove_chain
from aol.certification.lipschitz import certify_network
from aol.certification.radius import certified_radius
from aol.certification.rules import RULES
from aol.layers import plain
from aol.layers.modules import AOLConv2d, AOLLinear, ConcatenationPooling, MaxMin
from aol.layers.parametrization import parametrize, remove
from aol.layers.plain import FirstChannels, Flatten

pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = st.integers(0, 2**32 - 1)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(module, seed=0, spread=1.0):
    module = module.double()
    for index, parameter in enumerate(module.parameters()):
        parameter.data = spread * normal(*parameter.shape, seed=seed + index)
    return module


def norm(layer, *shape):
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        columns = layer(basis) - layer(torch.zeros(1, *shape, dtype=torch.float64))
    return torch.linalg.matrix_norm(columns.flatten(1), 2).item()


def quick(network, shape=(2, 6, 6)):
    return certify_network(network, shape, iterations=20, restarts=2, steps=10)


def certify(network):
    return certify_network(network, (3,))


def radius(network):
    return certified_radius(network, torch.ones(1, 3), torch.tensor([0]))


# --- standard modules ---

NEVER = [
    *(MaxMin(), plain.MaxMin(), ConcatenationPooling(2, 3), FirstChannels(1), Flatten()),
    *(nn.Flatten(), nn.Flatten(2), nn.Identity(), nn.ReLU(), nn.ReLU(inplace=True)),
    *(nn.LeakyReLU(), nn.LeakyReLU(-1.0), nn.Tanh(), nn.Softplus(), nn.Softplus(2.0, 30.0)),
    *(nn.PixelUnshuffle(2), nn.PixelUnshuffle(3), nn.ZeroPad2d(2), nn.ZeroPad2d((1, -2, 0, 3))),
    *(nn.ConstantPad2d(1, 3.0), nn.Dropout().eval()),
    *(nn.MaxPool2d(2), nn.MaxPool2d((3, 2)), nn.MaxPool2d(2, 3), nn.MaxPool2d(4, ceil_mode=True)),
]
every_module = pytest.mark.parametrize("module", NEVER, ids=str)


@every_module
def test_modules_that_never_stretch_are_accepted_and_not_listed_as_layers(module):
    found = quick(nn.Sequential(module))

    assert (found.layers, found.upper, found.violations) == ((), 1, ())
    assert 0 < found.ratio <= 1 + 1e-7


@every_module
def test_jacobians_of_modules_that_never_stretch_have_a_norm_of_at_most_one(module):
    """
    This check is independent of the search: singular values at points of every size.
    """
    for seed, spread in enumerate((0.1, 1.0, 30.0)):
        x = spread * normal(1, 2, 6, 6, seed=seed)
        y = nn.Sequential(module)(x.clone())
        jacobian = torch.autograd.functional.jacobian(lambda x: module(x.clone()), x)
        jacobian = jacobian.reshape(y.numel(), x.numel())

        assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-12


@every_module
@given(seed=SEEDS, spread=st.sampled_from([1e-3, 1.0, 1e2]))
@settings(max_examples=10)
def test_no_difference_grows_and_the_size_is_within_reach(module, seed, spread):
    x, y = spread * normal(2, 1, 2, 6, 6, seed=seed)
    out_x, out_y = module(x.clone()), module(y.clone())
    (proven,) = prove_chain(module, (2, 6, 6), Reach(float(x.norm()), 0.0))

    assert (out_x - out_y).norm() <= (x - y).norm() * (1 + 1e-12) + 1e-8
    assert out_x.norm() <= proven.reach.size * (1 + 1e-12)


@pytest.mark.parametrize(
    ("module", "upper"),
    [
        (nn.AvgPool2d(2), 1 / 2),
        (nn.AvgPool2d(3), 1 / 3),
        (nn.AvgPool2d((1, 3)), 3**-0.5),
        (nn.AvgPool2d(2, 3), 1 / 2),
    ],
    ids=str,
)
def test_average_pooling_has_the_norm_of_its_operator(module, upper):
    found = quick(nn.Sequential(module))

    assert [(layer.kind, layer.upper) for layer in found.layers] == [
        ("plain", pytest.approx(upper, rel=1e-12))
    ]
    assert norm(module, 2, 6, 6) == pytest.approx(upper, rel=1e-12)
    assert found.layers[0].lower == pytest.approx(upper, rel=1e-6)
    assert found.violations == ()
    assert found.upper == pytest.approx(upper, rel=1e-12)


@pytest.mark.parametrize("module", [nn.Tanh(), nn.Softplus(), nn.LeakyReLU(0.3)], ids=str)
def test_rounding_of_functions_is_within_the_error(module):
    """
    The reference has forty digits, the inputs have every size.
    """
    decimal = pytest.importorskip("mpmath")
    decimal.mp.dps = 40
    exactly = {
        "Tanh": decimal.tanh,
        "Softplus": lambda x: decimal.log1p(decimal.exp(x)),
        "LeakyReLU": lambda x: x if x > 0 else x * decimal.mpf(0.3),
    }[type(module).__name__]
    for spread in (1e-9, 1e-3, 1.0, 30.0):
        x = spread * normal(1, 40, seed=3)
        exact = [exactly(decimal.mpf(value)) for value in x[0].tolist()]
        errors = [decimal.mpf(y) - e for y, e in zip(module(x)[0].tolist(), exact, strict=True)]
        (proven,) = prove_chain(module, (40,), Reach(float(x.norm()) * (1 + 1e-15), 0.0))

        assert decimal.norm(errors) <= proven.reach.error


def test_rounding_of_average_pooling_is_within_the_error():
    module, x = nn.AvgPool2d(3), normal(1, 1, 3, 30, seed=2)
    windows = x[0, 0].unfold(1, 3, 3).permute(1, 0, 2).flatten(1).tolist()
    found = module(x)[0, 0, 0].tolist()
    exact = [sum(map(Fraction, window)) / 9 for window in windows]
    error = math.hypot(*(Fraction(a) - b for a, b in zip(found, exact, strict=True)))
    (proven,) = prove_chain(module, (1, 3, 30), Reach(float(x.norm()) * (1 + 1e-15), 0.0))

    assert 0 < error <= proven.reach.error < 1e-13


def test_an_error_is_carried_through_modules():
    reach = Reach(10.0, 0.5)
    chain = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Tanh())
    errors = [layer.reach.error for layer in prove_chain(chain, (1, 4, 4), reach)]

    assert errors == pytest.approx([0.5, 0.25, 0.25], rel=1e-10)
    assert errors[2] > errors[1] > 0.25


REFUSED = [
    (nn.LeakyReLU(1.5), r"the slope must be between -1 and 1, got 1\.5"),
    (nn.LeakyReLU(math.nan), "the slope must be between"),
    (nn.Softplus(beta=-1.0), r"beta and threshold must be above 0, got -1\.0 and 20"),
    (nn.Softplus(threshold=5.0), r"jumps by 0\.00672 at its threshold; raise the threshold to 20"),
    (nn.Dropout(), r"it is random in training mode; call \.eval\(\)"),
    (nn.AvgPool2d(3, 2), r"windows of \(3, 3\) overlap at stride \(2, 2\); use stride \(3, 3\)"),
    (nn.MaxPool2d((2, 3), 2), r"windows of \(2, 3\) overlap at stride \(2, 2\)"),
    (nn.MaxPool2d(3, 1, 1), "overlap"),
    (nn.MaxPool2d(2, padding=1), "padding has no proven bound"),
    (nn.AvgPool2d(2, padding=1), "padding has no proven bound"),
    (nn.MaxPool2d(2, dilation=2), "dilation and return_indices"),
    (nn.MaxPool2d(2, return_indices=True), "dilation and return_indices"),
    (nn.AvgPool2d(2, ceil_mode=True), "ceil_mode and divisor_override"),
    (nn.AvgPool2d(2, divisor_override=1), "ceil_mode and divisor_override"),
    (nn.Flatten(0), "start_dim must be 1 or more, got 0$"),
    (nn.Conv2d(2, 2, 3, stride=2), r"stride must be 1, got \(2, 2\)$"),
    (nn.Conv2d(2, 2, 3, groups=2), "groups must be 1, got 2$"),
    (
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        "padding_mode must be 'zeros', got 'reflect'$",
    ),
    (nn.BatchNorm2d(2), "use the modules that aol.certify_network lists, or give it a method lip"),
    (nn.GELU(), r"lipschitz_bound\(\)"),
    (nn.Conv1d(2, 2, 1), "has no known Lipschitz bound"),
    (parametrizations.spectral_norm(nn.Linear(3, 3)), r"torch\.nn\.utils\.parametrize\.remove_par"),
]


@pytest.mark.parametrize(("module", "message"), REFUSED, ids=lambda item: str(item)[:30])
def test_an_unproven_module_is_refused_with_its_name_its_type_and_advice(module, message):
    network = nn.Sequential(OrderedDict(first=nn.ReLU(), inner=nn.Sequential(module)))
    kind = type(module).__name__

    with pytest.raises(ValueError, match=rf"^layer inner\.0 \({kind}\):? .*{message}"):
        certify_network(network, (2, 6, 6))


@pytest.mark.parametrize(("module", "shape"), [(nn.LeakyReLU(1.5), (4,)), (nn.GELU(), (1,))])
def test_modules_refused_for_their_slope_do_stretch(module, shape):
    jacobian = jacrev(module)(torch.full(shape, 1.4 if shape == (1,) else -1.0))

    assert torch.linalg.matrix_norm(jacobian, 2) > 1.05


def test_overlapping_windows_do_stretch():
    assert norm(nn.AvgPool2d(3, 1, divisor_override=3), 1, 8, 8) > 1
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    assert nn.MaxPool2d(3, 1)(x).norm() == 3


def test_options_without_a_proof_are_named_with_what_is_found_and_allowed():
    network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=2, padding_mode="circular"))

    with pytest.raises(ValueError, match="stride") as caught:
        certify_network(network, (4, 6, 6))
    assert str(caught.value) == (
        "layer 0 (Conv2d): stride must be 1, got (2, 2); groups must be 1, got 2; padding_mode "
        "must be 'zeros', got 'circular'"
    )


def test_every_problem_is_reported_at_once():
    network = nn.Sequential(nn.GELU(), nn.Linear(3, 3), nn.Sequential(nn.SiLU()))

    with pytest.raises(ValueError, match=r"^layer 0 \(GELU\) .*; layer 2\.0 \(SiLU\) "):
        certify_network(network, (3,))


def test_a_module_that_is_no_chain_is_refused_with_its_type():
    with pytest.raises(ValueError, match=r"^the module \(ModuleList\) has no known"):
        certify_network(nn.ModuleList([nn.ReLU()]), (3,))


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class DoubleReLU(nn.ReLU):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubleLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubleAOL(AOLLinear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module", [Residual(nn.ReLU()), DoubleReLU(), DoubleLinear(3, 3), DoubleAOL(3, 3)], ids=str
)
def test_a_subclass_with_another_forward_is_not_treated_as_its_base(module):
    kind = type(module).__name__

    with pytest.raises(ValueError, match=rf"layer 0 \({kind}\) has no known Lipschitz bound"):
        certify_network(nn.Sequential(module), (3,))


def test_a_module_with_hooks_is_refused():
    hooked, network = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())
    hooked.register_forward_hook(lambda module, given, output: 2 * output)
    network[0].register_forward_pre_hook(lambda module, given: (2 * given[0],))

    for model in (hooked, network):
        with pytest.raises(ValueError, match=r"has forward hooks, .*remove them"):
            certify_network(model, (3,))


@pytest.mark.parametrize("place", ["0", "1", "1.0", ""])
def test_a_module_with_a_forward_of_its_own_is_refused(place):
    """
    It replaces that of the class, alone and for all modules inside.
    """
    network = nn.Sequential(AOLLinear(3, 3), nn.Sequential(nn.ReLU()))
    network.get_submodule(place).forward = lambda x: 2 * x
    where = f"layer {place} " if place else "the module "

    for call in (certify, radius):
        with pytest.raises(ValueError, match=rf"^{where}.* attribute forward of its own, .*delete"):
            call(network)


class DoubleConv(nn.Conv2d):
    def _conv_forward(self, *given):
        return 2 * super()._conv_forward(*given)


class DoubleCall(nn.ReLU):
    def __call__(self, x):
        return 2 * super().__call__(x)


class DoubleCallInside(AOLLinear):
    def _call_impl(self, x):
        return 2 * super()._call_impl(x)


class Twice(nn.Sequential):
    def __iter__(self):
        return iter([*super().__iter__()] * 2)


OVERRIDING = [DoubleConv(3, 3, 1), DoubleCall(), DoubleCallInside(3, 3), Twice(AOLLinear(3, 3))]


@pytest.mark.parametrize("module", OVERRIDING, ids=lambda module: type(module).__name__)
def test_a_subclass_that_overrides_a_method_around_the_forward_is_refused(module):
    kind = type(module).__name__

    for call in (certify, radius):
        with pytest.raises(ValueError, match=rf"^layer 0 \({kind}\) has no known Lipschitz bound"):
            call(nn.Sequential(module))


def test_a_convolution_replaced_on_the_module_itself_is_refused():
    layer = nn.Conv2d(3, 3, 1)
    layer._conv_forward = lambda x, weight, bias: 2 * x

    with pytest.raises(ValueError, match="has an attribute _conv_forward of its own"):
        certify(nn.Sequential(layer))


def test_a_declared_bound_is_that_of_an_overriding_subclass_too():
    class Declared(DoubleConv):
        def lipschitz_bound(self):
            return 10.0

    (layer,) = certify_network(nn.Sequential(Declared(3, 3, 1)), (3, 2, 2)).layers

    assert (layer.kind, layer.upper) == ("declared", 10.0)


def test_the_error_for_a_wrong_input_shape_contains_the_name_of_the_layer():
    network = nn.Sequential(nn.Flatten(), nn.Sequential(AOLLinear(5, 3)))

    with pytest.raises(ValueError, match=r"layer 1\.0 \(AOLLinear\) cannot take .* shape \(72,\)"):
        certify_network(network, (2, 6, 6))


TOO_FLAT = [
    (nn.Conv2d(3, 4, 3), (8, 8), r"\(3, height, width\)"),
    (AOLConv2d(1, 4, 3), (8, 8), r"\(1, height, width\)"),
    (AOLConv2d(1, 4, 3), (2, 8, 8), r"\(1, height, width\)"),
    (nn.Linear(3, 4), (8,), r"\(\.\.\., 3\)"),
    (ConcatenationPooling(2, 2), (8, 8), r"\(channels, height, width\)"),
    (Flatten(), (8, 8), r"\(channels, height, width\)"),
    (nn.PixelUnshuffle(2), (8, 8), "3 dimensions or more"),
    (nn.ZeroPad2d(1), (8,), "2 dimensions or more"),
    (nn.Flatten(2), (8,), "2 dimensions or more"),
    (nn.AvgPool2d(2), (8,), r"\(channels, height, width\)"),
    (nn.MaxPool2d(2), (2, 2, 8, 8), r"\(channels, height, width\)"),
]


@pytest.mark.parametrize(("module", "shape", "needed"), TOO_FLAT, ids=str)
def test_an_input_without_the_dimensions_of_a_layer_is_refused(module, shape, needed):
    """
    Torch takes some of them for one image without a batch, whose channels are the images.
    """
    network = nn.Sequential(nn.ReLU(), module)
    where = rf"layer 1 \({type(module).__name__}\) cannot take an input of shape \({shape[0]}"

    with pytest.raises(ValueError, match=rf"^{where}.*; it needs {needed}$"):
        quick(network, shape)
    with pytest.raises(ValueError, match=rf"^{where}.*; it needs {needed}$"):
        certified_radius(network, torch.zeros(1, *shape), torch.tensor([0]))


@pytest.mark.parametrize("module", [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.ZeroPad2d(1)], ids=str)
def test_an_image_without_channels_is_accepted_where_batches_of_it_are(module):
    flat, image = (quick(nn.Sequential(module), shape) for shape in ((4, 6), (1, 4, 6)))

    assert flat.violations == ()
    assert (flat.upper, flat.score_error) == (image.upper, image.score_error)


@pytest.mark.parametrize("shape", [(), (0,), (3, -1)])
def test_a_shape_that_no_input_has_is_refused(shape):
    with pytest.raises(ValueError, match=r"at least one dimension .*, got \("):
        certify_network(nn.Sequential(nn.ReLU()), shape)


@pytest.mark.parametrize("module", [MaxMin(), AOLConv2d(3, 4, 5)], ids=str)
def test_an_input_that_does_not_fit_is_told_by_the_name_of_the_layer(module):
    with pytest.raises(ValueError, match=r"^layer 0 \(\w+\) cannot take an input of shape \(3, 4"):
        certify_network(nn.Sequential(module), (3, 4, 4))


def test_every_rule_is_tested():
    assert set(RULES) == {type(module).forward for module in [*NEVER, nn.AvgPool2d(2)]}


# --- nested networks ---


def test_nested_chains_have_dotted_names_in_the_order_of_a_pass():
    inner = nn.Sequential(OrderedDict(a=AOLLinear(4, 4), b=MaxMin()))
    network = nn.Sequential(OrderedDict(body=nn.Sequential(inner, inner), head=AOLLinear(4, 2)))
    found = certify_network(network, (4,))

    names = ["body.0.a", "body.1.a", "head"]
    assert [layer.name for layer in found.layers] == [f"layer {n} (AOLLinear)" for n in names]
    assert [name for name, _ in leaves(network)][1] == "body.0.b"


def test_a_nested_network_has_the_certificate_of_the_flat_one():
    modules = [AOLConv2d(2, 4, 3), MaxMin(), Flatten(), AOLLinear(64, 3)]
    flat = nn.Sequential(*modules)
    nested = nn.Sequential(modules[0], nn.Sequential(modules[1], nn.Sequential(*modules[2:])))
    one, other = (certify_network(network, (2, 6, 6)) for network in (flat, nested))

    assert one.as_dict() | {"layers": 0} == other.as_dict() | {"layers": 0}
    assert [layer.upper for layer in one.layers] == [layer.upper for layer in other.layers]


@pytest.mark.parametrize("layer", [AOLLinear(4, 3), AOLLinear(4, 3, bias=False), nn.Linear(4, 3)])
def test_a_layer_is_a_chain_of_one(layer):
    found = certify_network(layer, (4,))

    assert [bound.name for bound in found.layers] == [f"the module ({type(layer).__name__})"]
    assert found.ratio <= found.upper + TOLERANCE


def test_an_empty_chain_is_the_identity():
    found = certify_network(nn.Sequential(), (4,))

    assert (found.upper, found.layers, found.violations) == (1, (), ())
    assert found.score_error == 2 * 2.0**-52


def test_a_relu_in_place_changes_no_weights_or_certificates():
    layers = [AOLLinear(4, 4), nn.ReLU(inplace=True)]
    network = nn.Sequential(layers[1], *layers)
    found = certify_network(network, (4,))

    assert found.as_dict() == certify_network(nn.Sequential(nn.ReLU(), *layers), (4,)).as_dict()
    assert network[0].inplace


# --- plain layers ---


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    spread=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=SEEDS,
)
@settings(max_examples=40)
def test_no_plain_operator_exceeds_its_bound(shape, kernel, spread, seed):
    """
    A bound with other numbers q is proven, too. The search for them only makes it smaller.
    """
    if kernel is None:
        layer, image = nn.Linear(shape[0], shape[1]), (shape[0],)
    else:
        layer, image = nn.Conv2d(*shape, kernel, padding=1), (shape[0], 5, 6)
    layer = filled(layer, seed, spread)
    bound = upper_bound(layer.weight)

    assert norm(layer, *image) <= bound * (1 + 1e-12)
    ones = torch.ones(shape[0], dtype=torch.float64)
    assert bound <= weighted_bound(layer.weight.detach(), ones) * (1 + 1e-12)


def test_the_bound_of_a_positive_matrix_is_its_norm():
    """
    Where every |V| is V, the Perron vector gives the norm itself.
    """
    weight = normal(7, 5).abs()

    assert upper_bound(weight) == pytest.approx(
        torch.linalg.matrix_norm(weight, 2).item(), rel=1e-9
    )


def test_the_bound_of_independent_blocks_is_that_of_the_larger():
    weight = torch.block_diag(3 * normal(3, 2).abs(), normal(2, 3, seed=1).abs()).double()

    assert upper_bound(weight) == pytest.approx(
        torch.linalg.matrix_norm(weight, 2).item(), rel=1e-9
    )


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (4, 3, 3, 3)])
def test_the_search_finds_the_divisors_of_rescaled_weights(shape):
    """
    Weights after `remove` keep a bound of 1, without the raw weight.
    """
    layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(3, 4, 3)
    remove(parametrize(filled(layer)))

    assert upper_bound(layer.weight) <= 1 + 1e-9


def test_dead_channels_and_zeros_have_finite_bounds():
    weight = normal(3, 4)
    weight[:, 1] = 0

    assert 0 < upper_bound(weight) < 10
    assert upper_bound(torch.zeros(3, 4)) == 0
    assert bool((tight_divisors(weight) > 0).all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_a_violation(value):
    layer = nn.Linear(3, 3)
    layer.weight.data[0, 0] = value

    assert "its weights are not finite" in certify_network(layer, (3,)).violations[0]


def test_a_plain_layer_above_one_is_no_violation():
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), AOLLinear(6, 3))
    network[1].weight.data *= 100
    found = quick(network)

    assert [layer.kind for layer in found.layers] == ["plain", "aol"]
    assert found.layers[0].upper > 5
    assert found.upper == pytest.approx(found.layers[0].upper * found.layers[1].upper)
    assert 1 < found.ratio <= found.upper
    assert found.violations == ()


@pytest.mark.parametrize(
    ("layer", "violated"),
    [
        (LayerBound("a", 5.0, 4.0), True),
        (LayerBound("a", 5.0, 4.0, "plain"), False),
        (LayerBound("a", 5.0, 4.0, "declared"), False),
        (LayerBound("a", 5.0, 5.1, "plain"), True),
        (LayerBound("a", 5.0, 5.1, "declared"), True),
        (LayerBound("a", 1e9, 1e9 + 100, "plain"), False),  # within the tolerance of its size
        (LayerBound("a", 0.5, 0.6, "plain"), True),
        (LayerBound("a", math.inf, 1.0, "plain"), True),
        (LayerBound("a", math.nan, math.nan, "declared"), True),
    ],
)
def test_only_aol_layers_must_have_a_bound_of_one(layer, violated):
    found = LipschitzCertificate((layer,), ratio=0.0, score_error=0.0, tolerance=1e-6)

    assert bool(found.violations) == violated


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (AOLLinear(8, 2), (8,)),
        (AOLLinear(8, 2), (100, 8)),
        (nn.Linear(8, 2), (5, 20, 8)),
        (AOLConv2d(8, 2, 3), (8, 12, 9)),
        (nn.Conv2d(8, 2, 3, padding=2), (8, 10, 10)),
    ],
    ids=str,
)
def test_the_bias_counts_at_every_position_of_the_output(layer, shape):
    """
    On zeros the output is the bias at every position, which is all of the reach.
    """
    layer.bias.data.fill_(300)
    zeros = torch.zeros(1, *shape, dtype=torch.float64)
    (proven,) = prove_chain(layer.double(), shape, Reach(0.0, 0.0))

    assert proven.reach.size == pytest.approx(layer(zeros).norm().item(), rel=1e-12)
    assert proven.reach.error > 0


# --- parametrized layers ---


def test_parametrized_layers_are_aol_layers():
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=2), nn.ReLU(), nn.Flatten())
    network = parametrize(filled(nn.Sequential(*network, nn.Linear(256, 5)))).float()
    found = certify_network(network, (2, 6, 6))

    assert [layer.name for layer in found.layers] == [
        "layer 0 (ParametrizedConv2d)",
        "layer 3 (ParametrizedLinear)",
    ]
    assert [layer.kind for layer in found.layers] == ["aol", "aol"]
    assert found.violations == ()
    assert all(0.3 < layer.lower <= layer.upper <= 1 + TOLERANCE for layer in found.layers)
    baked = certify_network(remove(network), (2, 6, 6))
    assert [layer.kind for layer in baked.layers] == ["plain", "plain"]
    assert baked.upper <= found.upper * (1 + 1e-6)


def test_a_parametrized_layer_has_the_certificate_of_the_aol_layer():
    ours, theirs = filled(AOLLinear(6, 4)), nn.Linear(6, 4).double()
    theirs.load_state_dict(ours.state_dict())
    one = certify_network(ours, (6,))
    other = certify_network(parametrize(theirs), (6,))

    assert one.upper == pytest.approx(other.upper, rel=1e-14)
    assert one.score_error == pytest.approx(other.score_error, rel=1e-12, abs=0)


# --- declared bounds ---


class Scaled(nn.Module):
    def __init__(self, factor, bound, offset=0.0):
        super().__init__()
        self.factor, self.bound, self.offset = factor, bound, offset

    def forward(self, x):
        return self.factor * x + self.offset

    def lipschitz_bound(self):
        return self.bound


@pytest.mark.parametrize("bound", [2, 2.5, torch.tensor(3.0)])
def test_a_declared_bound_is_recorded_as_declared(bound):
    network = nn.Sequential(AOLLinear(4, 4), Scaled(2.0, bound))
    found = certify_network(network, (4,))

    assert [layer.declared for layer in found.layers] == [False, True]
    assert found.layers[1].name == "layer 1 (Scaled)"
    assert found.layers[1].upper == float(bound)
    assert found.layers[1].lower == pytest.approx(2, rel=1e-9)
    assert found.upper == pytest.approx(float(bound) * found.layers[0].upper)
    assert found.violations == ()


def test_a_declared_bound_that_is_too_small_is_a_violation():
    (line, *_) = certify_network(nn.Sequential(Scaled(2.0, 1.5)), (4,)).violations

    assert line == "layer 0 (Scaled): stretches an input by 2, its declared bound is 1.5"


class Steep(Scaled):
    """
    Flat around 0 and steep elsewhere, which differences from 0 do not reveal.
    """

    def forward(self, x):
        return (x - 0.5).clamp(min=0) * self.factor


def test_a_declared_bound_is_also_checked_between_pairs_of_inputs():
    found = certify_network(nn.Sequential(Steep(3.0, 1.0)), (1,))

    assert found.layers[0].lower == pytest.approx(3, rel=1e-6)
    assert any("declared bound is 1" in line for line in found.violations)


@pytest.mark.parametrize("bound", [math.nan, math.inf, -1.0])
def test_a_declared_bound_must_be_finite_and_not_negative(bound):
    with pytest.raises(ValueError, match=r"layer 0 \(Scaled\): lipschitz_bound\(\) returned"):
        certify_network(nn.Sequential(Scaled(1.0, bound)), (4,))


def test_the_reach_behind_a_declared_module_holds():
    """
    Its output for zeros is unknown, so the size is proven from one output and the bound.
    """
    chain = nn.Sequential(Scaled(2.0, 2.0, offset=7.0), Scaled(1.0, 1.0, offset=-3.0))
    x = normal(1, 5)
    proven = prove_chain(chain, (5,), Reach(float(x.norm()), 1e-9))

    assert chain[0](x).norm() <= proven[0].reach.size
    assert chain(x).norm() <= proven[1].reach.size
    assert proven[1].reach.error == pytest.approx(2e-9)


def test_a_proven_bound_takes_precedence_over_a_declared_one():
    class Modest(nn.Linear):
        def lipschitz_bound(self):
            return 1e-3

    (layer,) = certify_network(nn.Sequential(Modest(4, 4)), (4,)).layers

    assert layer.kind == "plain"
    assert layer.upper > 0.1


def test_only_kinds_other_than_aol_are_stored():
    network = nn.Sequential(AOLLinear(4, 4), nn.Linear(4, 4), Scaled(2.0, 2.0))
    found = certify_network(network, (4,))
    stored = json.loads(json.dumps(found.as_dict()))

    assert [layer.get("kind") for layer in stored["layers"]] == [None, "plain", "declared"]
    assert list(stored["layers"][0]) == ["name", "upper", "lower"]
    assert LipschitzCertificate.from_dict(stored) == found


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored["layers"][0].update(kind="proven"),
        lambda stored: stored["layers"][0].pop("upper"),
        lambda stored: stored.pop("ratio"),
        lambda stored: stored.update(layers=[1]),
    ],
)
def test_an_invalid_certificate_is_refused(change):
    stored = LipschitzCertificate((LayerBound("a", 1.0, 1.0),), 1.0, 0.0, 1e-6).as_dict()
    change(stored)

    with pytest.raises(ValueError, match=r"^not a certificate: "):
        LipschitzCertificate.from_dict(stored)
