"""
Inside the transforms of torch.func: the same values, and derivatives of every order.
"""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

from aol.layers.modules import AOLConv2d, AOLLinear, ConcatenationPooling, Flatten, MaxMin
from aol.ops.rescale import rescale_conv, rescale_convs, rescale_dense, rescale_denses

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's own forward derivatives are compiled with it
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
]

# A kernel for every way: the narrowest, narrow, wide with fewest products, wide, and one tap.
KERNELS = [(3, 4, 3, 3), (5, 24, 3, 3), (4, 72, 3, 3), (4, 72, 2, 2), (5, 8, 1, 1), (4, 256, 1, 1)]
MATRICES = [(5, 8), (4, 256)]
RESCALED = [(rescale_conv, shape) for shape in KERNELS]
RESCALED += [(rescale_dense, shape) for shape in MATRICES]
every_rescaling = pytest.mark.parametrize(("rescale", "shape"), RESCALED)


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@every_rescaling
def test_vmap_rescales_each_kernel(rescale, shape):
    kernels = normal(3, *shape)

    one_by_one = torch.stack([rescale(kernel) for kernel in kernels])
    torch.testing.assert_close(vmap(rescale)(kernels), one_by_one, rtol=1e-12, atol=1e-14)


@every_rescaling
def test_gradients_inside_are_those_written_by_hand(rescale, shape):
    kernel, upstream = normal(*shape), normal(*shape, seed=1)
    raw = kernel.clone().requires_grad_()
    (expected,) = torch.autograd.grad(rescale(raw), raw, upstream)

    _, pull = vjp(rescale, kernel)
    torch.testing.assert_close(pull(upstream)[0], expected, rtol=1e-10, atol=1e-13)
    found = grad(lambda kernel: (rescale(kernel) * upstream).sum())(kernel)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


@every_rescaling
def test_forward_derivatives_are_the_difference_quotient(rescale, shape):
    kernel, direction, step = normal(*shape), normal(*shape, seed=1), 1e-6
    ahead, behind = rescale(kernel + step * direction), rescale(kernel - step * direction)
    value, tangent = jvp(rescale, (kernel,), (direction,))

    torch.testing.assert_close(value, rescale(kernel), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(2, 4, 2, 2), (3, 4, 1, 1)])
def test_jacobians_of_the_rescaling_agree_forwards_and_backwards(shape):
    kernel = normal(*shape)

    torch.testing.assert_close(jacrev(rescale_conv)(kernel), jacfwd(rescale_conv)(kernel))


@pytest.mark.parametrize(("rescale", "shape"), [(rescale_dense, (2, 256)), (rescale_conv, (2, 24))])
def test_a_second_derivative_inside_is_the_difference_quotient(rescale, shape):
    """
    Of wide kernels, whose first derivative outside is written by hand.
    """
    kernel = normal(*shape, *([2, 1] if rescale is rescale_conv else []))
    direction, step = normal(*kernel.shape, seed=1), 1e-6
    slope = grad(lambda kernel: rescale(kernel).square().sum())
    ahead, behind = slope(kernel + step * direction), slope(kernel - step * direction)
    _, found = jvp(slope, (kernel,), (direction,))

    torch.testing.assert_close(found, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize(
    ("rescale", "shape"),
    [
        *(
            (rescale_conv, (1, 4, 2, 2)),
            (rescale_conv, (1, 24, 2, 1)),
            (rescale_conv, (1, 72, 1, 2)),
        ),
        *((rescale_dense, (1, 8)), (rescale_dense, (1, 256)), (rescale_denses, (2, 1, 256))),
    ],
)
def test_second_derivatives_outside_are_those_inside(rescale, shape, vectorize):
    kernel = normal(*shape)

    for power in (1, 3):
        function = partial(powered, rescale, power)
        found = torch.autograd.functional.hessian(function, kernel, vectorize=vectorize)
        torch.testing.assert_close(found, hessian(function)(kernel))
        assert found.norm() > 1e-3


def powered(rescale, power, kernel):
    return rescale(kernel).pow(power).sum()


@pytest.mark.parametrize(
    ("stacked", "shape"), [(rescale_convs, (2, 4, 72, 3, 3)), (rescale_denses, (2, 4, 256))]
)
def test_stacked_kernels_are_rescaled_the_same_inside(stacked, shape):
    kernels = normal(3, *shape)
    expected = torch.stack([stacked(one) for one in kernels])

    torch.testing.assert_close(vmap(stacked)(kernels), expected, rtol=1e-12, atol=1e-14)


# --- MaxMin ---


def test_vmap_orders_the_pairs_of_each_row():
    x = normal(5, 8)

    assert torch.equal(vmap(MaxMin())(x), MaxMin()(x))
    images = normal(3, 2, 4, 5, 6)
    assert torch.equal(vmap(MaxMin())(images), torch.stack([MaxMin()(one) for one in images]))


def test_the_jacobian_of_maxmin_is_a_permutation_or_a_half_at_ties():
    x = torch.tensor([[1.0, 2.0], [2.0, 1.0], [3.0, 3.0]])
    swap, keep, tie = [[0, 1], [1, 0]], [[1, 0], [0, 1]], [[0.5, 0.5], [0.5, 0.5]]
    expected = torch.tensor([swap, keep, tie], dtype=torch.float32)

    assert torch.equal(vmap(jacrev(MaxMin()))(x), expected)
    assert torch.equal(vmap(jacfwd(MaxMin()))(x), expected)


def test_forward_derivatives_of_maxmin_are_those_of_its_gradient():
    x, direction, upstream = (normal(2, 4, 3, 3, seed=seed) for seed in range(3))
    raw = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(MaxMin()(raw), raw, upstream)
    _, tangent = jvp(MaxMin(), (x,), (direction,))

    torch.testing.assert_close((tangent * upstream).sum(), (gradient * direction).sum())


def test_the_second_derivative_of_maxmin_itself_is_zero():
    x = normal(6)
    found = hessian(lambda x: (MaxMin()(x) ** 2).sum())(x)

    torch.testing.assert_close(found, 2 * torch.eye(6, dtype=torch.float64))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("shape", [(2, 4), (1, 4, 2, 1), (4,)])
def test_second_derivatives_of_maxmin_outside_are_those_inside(shape, vectorize):
    """
    Of functions in which it is linear, squared, and twice with something in between.
    """
    x, mix = normal(*shape), normal(math.prod(shape), math.prod(shape), seed=1)
    maxmin = MaxMin()

    for function in (
        lambda x: (maxmin(x) * x).sum(),
        lambda x: (mix @ maxmin(x).flatten()).pow(3).sum(),
        lambda x: maxmin(maxmin(x).square() * x.sum()).sin().sum(),
    ):
        found = torch.autograd.functional.hessian(function, x, vectorize=vectorize)
        torch.testing.assert_close(found, hessian(function)(x))
        assert found.norm() > 0.1


# --- networks ---


@pytest.fixture
def network():
    layers = [
        *(ConcatenationPooling(2, 2), AOLConv2d(12, 24, 3, padding=1), MaxMin()),
        *(AOLConv2d(24, 6, 1), MaxMin(), Flatten(), AOLLinear(24, 4)),
    ]
    made = nn.Sequential(*layers).double()
    for seed, parameter in enumerate(made.parameters()):
        parameter.data += 0.1 * normal(*parameter.shape, seed=seed)
    return made


def test_the_jacobian_of_a_network_is_autograds(network):
    images = normal(2, 3, 4, 4)
    expected = torch.autograd.functional.jacobian(network, images)

    torch.testing.assert_close(jacrev(network)(images), expected)
    torch.testing.assert_close(jacfwd(network)(images), expected)


def test_gradients_of_single_images_are_those_of_batches_of_one(network):
    images = normal(3, 3, 4, 4)
    parameters = dict(network.named_parameters())

    def score(parameters, image):
        return functional_call(network, parameters, (image[None],)).square().sum()

    found = vmap(grad(score), in_dims=(None, 0))(parameters, images)

    for index in range(3):
        network.zero_grad()
        network(images[index : index + 1]).square().sum().backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name][index], parameter.grad)


def test_an_ensemble_is_one_network_after_the_other():
    """
    Weights have a batch dimension, too.
    """
    networks = [
        nn.Sequential(AOLConv2d(3, 4, 3), MaxMin(), nn.Flatten(), AOLLinear(16, 3)).double()
        for _ in range(3)
    ]
    parameters, buffers = stack_module_state(networks)
    images = normal(2, 3, 4, 4)

    def scores(parameters, buffers):
        return functional_call(networks[0], (parameters, buffers), (images,))

    expected = torch.stack([network(images) for network in networks])
    torch.testing.assert_close(vmap(scores)(parameters, buffers), expected)
