import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

from aol.ops import algorithms, gram
from aol.ops.rescale import (
    EPS,
    rescale_conv,
    rescale_convs,
    rescale_dense,
    rescale_denses,
    total,
)
from benchmarks import plain
from tests.support.golden_recipe import golden, weight_from_tf, weight_to_tf, worst

RESCALE = golden("rescale")
CASES = sorted(name.removesuffix("_K") for name in RESCALE.files if name.endswith("_K"))
FEW = st.integers(1, 4)
SHAPES = st.tuples(FEW, FEW, FEW, FEW)  # (O, I, K, L): even, non-square, O != I
SHAPES |= st.tuples(FEW, FEW, st.just(3), st.just(3))  # as often those with the fewest products
SEEDS = st.integers(0, 2**32 - 1)


# The widths from which on each way to the Gram kernel is taken: as measured, which leaves few
# channels to autograd, or one gradient by hand for all widths.
BY_HAND = {
    "convolution": {"NARROW": 10**9, "TOOM_COOK": 0},
    "half-plane": {"NARROW": 0, "TOOM_COOK": 10**9},
    "fewest products": {"NARROW": 0, "TOOM_COOK": 0},
}
WAYS = {"as chosen": {}} | {
    name: {"NARROWEST": 0, "NARROW_DENSE": 0, "BLOCK": 2} | widths
    for name, widths in BY_HAND.items()
}
every_way = pytest.mark.parametrize("way", WAYS)


@contextmanager
def taken(way):
    """
    Rescale in this way inside the block. This is no fixture, because hypothesis rejects fixtures
    per function.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, width in WAYS[way].items():
            patch.setattr(algorithms, name, width)
        yield


@pytest.fixture(params=WAYS)
def way(request):
    with taken(request.param):
        yield request.param


def normal(*shape, seed, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, generator=generator, dtype=torch.float64)


def gram_by_loops(kernel):
    """
    The paper's V_ij(y, x) at every displacement, as an (I, I, 2K - 1, 2L - 1) array.
    """
    _, inputs, rows, columns = kernel.shape
    gram = np.zeros((inputs, inputs, 2 * rows - 1, 2 * columns - 1))
    for i, j in itertools.product(range(inputs), repeat=2):
        for y, x in itertools.product(range(1 - rows, rows), range(1 - columns, columns)):
            for row, column in itertools.product(range(rows), range(columns)):
                if 0 <= row + y < rows and 0 <= column + x < columns:
                    taps = kernel[:, i, row, column] * kernel[:, j, row + y, column + x]
                    gram[i, j, y, x] += taps.sum()
    return gram


def conv_scale(kernel):
    """
    The scale of each input channel, by the ways that wide kernels take.
    """
    return (total(gram.gram(kernel[None]).abs()) + EPS).rsqrt()[0]


def scale_by_loops(kernel):
    return (np.abs(gram_by_loops(kernel)).sum((1, 2, 3)) + 1e-6) ** -0.5


def rescaled_golden(name, dtype):
    """
    Our rescaled weight and the gradient of sum(rescaled * G), in TensorFlow's layout.
    """
    weight = weight_from_tf(RESCALE[f"{name}_K"], dtype).requires_grad_()
    upstream = weight_from_tf(RESCALE[f"{name}_G"], dtype)
    rescaled = (rescale_conv if weight.ndim == 4 else rescale_dense)(weight)
    (gradient,) = torch.autograd.grad((rescaled * upstream).sum(), weight)
    return weight_to_tf(rescaled), weight_to_tf(gradient)


def test_the_golden_file_has_every_case():
    convolutions = {name.split("_")[0] for name in CASES if name.startswith("conv")}

    assert len(convolutions) == 14
    assert len(CASES) == 14 * 2 + 2 * 3 + 8


@pytest.mark.parametrize("name", CASES)
def test_float64_equals_the_authors(name, way):
    kernel, gradient = rescaled_golden(name, torch.float64)

    assert worst(kernel, RESCALE[f"{name}_f64_kernel"]) <= 1e-10
    assert worst(gradient, RESCALE[f"{name}_f64_grad"]) <= 1e-10


@pytest.mark.parametrize("name", CASES)
def test_float32_equals_the_authors(name, way):
    """
    Within 1e-5 of the largest entry, the tiny kernels included (seen: 2e-6).

    An entry of V that rounds to the other side of 0 would move a gradient by 1e-4 or more,
    in the authors' code as in ours; no golden case has one.
    """
    kernel, gradient = rescaled_golden(name, torch.float32)

    assert kernel.dtype == gradient.dtype == np.float32
    assert worst(kernel, RESCALE[f"{name}_f32_kernel"]) <= 1e-5
    assert worst(gradient, RESCALE[f"{name}_f32_grad"]) <= 1e-5


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("conv")])
def test_the_scale_equals_the_authors_factors(name):
    scale = conv_scale(weight_from_tf(RESCALE[f"{name}_K"])).numpy()

    assert worst(scale, RESCALE[f"{name}_f64_factors"]) <= 1e-12


@every_way
@given(shape=SHAPES, seed=SEEDS)
def test_the_scale_is_the_papers_sum(shape, seed, way):
    with taken(way):
        kernel = normal(*shape, seed=seed)
        expected = torch.from_numpy(scale_by_loops(kernel.numpy()))

        torch.testing.assert_close(conv_scale(kernel), expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            rescale_conv(kernel), kernel * expected[None, :, None, None], rtol=1e-12, atol=0
        )


@every_way
@given(outputs=st.integers(1, 6), inputs=st.integers(1, 6), seed=SEEDS)
def test_the_dense_scale_is_the_papers_sum(outputs, inputs, seed, way):
    with taken(way):
        matrix = normal(outputs, inputs, seed=seed)
        expected = torch.empty_like(matrix)
        for i in range(inputs):
            total = sum(abs(float(matrix[:, i] @ matrix[:, j])) for j in range(inputs))
            expected[:, i] = matrix[:, i] * (total + 1e-6) ** -0.5

        torch.testing.assert_close(rescale_dense(matrix), expected, rtol=1e-12, atol=0)


def rescaled_plainly(kernel):
    """
    The paper's formula, one displacement at a time and differentiated by autograd.
    """
    _, inputs, rows, columns = kernel.shape
    total = torch.zeros(inputs, dtype=kernel.dtype)
    for y, x in itertools.product(range(1 - rows, rows), range(1 - columns, columns)):
        here = kernel[:, :, max(0, -y) : rows - max(0, y), max(0, -x) : columns - max(0, x)]
        there = kernel[:, :, max(0, y) : rows + min(0, y), max(0, x) : columns + min(0, x)]
        total = total + torch.einsum("oikl,ojkl->ij", here, there).abs().sum(1)
    return kernel * (total + 1e-6).rsqrt()[:, None, None]


@pytest.mark.parametrize(
    "shape",
    [(5, 3, 7, 7), (2, 9, 1, 6), (17, 30, 5, 4), (130, 97, 3, 3), (96, 96, 2, 2), (40, 300, 1, 1)],
)
def test_sizes_outside_the_golden_files_follow_the_plain_formula_too(shape):
    """
    Wide, long, even and one-dimensional kernels; also its gradient.
    """
    kernel, upstream = normal(*shape, seed=11), normal(*shape, seed=12)
    results = []
    for way in (rescale_conv, rescaled_plainly):
        raw = kernel.clone().requires_grad_()
        rescaled = way(raw)
        results.append((rescaled.detach(), *torch.autograd.grad((rescaled * upstream).sum(), raw)))

    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.slow
@every_way
@settings(max_examples=20)
@given(shape=SHAPES, seed=SEEDS)
def test_the_gradient_is_the_difference_quotient(shape, seed, way):
    """
    Away from V = 0, where the absolute value has a kink and there is no derivative.
    """
    with taken(way):
        kernel = normal(*shape, seed=seed)
        gram = gram_by_loops(kernel.numpy())
        reachable = np.abs(gram_by_loops(np.ones(shape))) > 0
        kernel.requires_grad_()

        assume(np.abs(gram[reachable]).min() > 1e-4)
        assert gradcheck(rescale_conv, kernel, eps=1e-6, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (3, 2, 3, 3), (5, 3, 1, 1)])
def test_the_gradient_of_a_generic_kernel_passes_gradcheck(shape, way):
    kernel = normal(*shape, seed=5)
    assert np.abs(gram_by_loops(kernel.numpy())).min() > 1e-3

    assert gradcheck(rescale_conv, kernel.requires_grad_(), eps=1e-6, atol=1e-8)


def test_the_gradient_of_a_generic_matrix_passes_gradcheck(way):
    assert gradcheck(rescale_dense, normal(5, 3, seed=5).requires_grad_(), eps=1e-6, atol=1e-8)


def pull_of_one_weight():
    """
    The gradient of the first rescaled weight where V_01 = 0 and V_ii = 4 alone counts.
    """
    r = (4 + EPS) ** -0.5
    return torch.tensor([[r - 4 * r**3, 0], [0, 0]], dtype=torch.float64)


def test_sign_of_zero_is_zero_in_the_gradient(way):
    """
    The columns are orthogonal: V_01 = 0 has no effect, so only V_ii = 4 counts.
    """
    matrix = (2 * torch.eye(2, dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(rescale_dense(matrix)[0, 0], matrix)

    torch.testing.assert_close(gradient, pull_of_one_weight(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_sign_of_zero_is_zero_in_a_convolutions_gradient(size, way):
    """
    The same at the first tap; all other displacements are 0, too.
    """
    kernel = torch.zeros(2, 2, size, size, dtype=torch.float64)
    kernel[:, :, 0, 0] = 2 * torch.eye(2)
    kernel.requires_grad_()
    (gradient,) = torch.autograd.grad(rescale_conv(kernel)[0, 0, 0, 0], kernel)

    expected = torch.zeros_like(kernel)
    expected[:, :, 0, 0] = pull_of_one_weight()
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 3), (2, 3, 3, 3), (2, 3, 1, 1, 1)])
def test_weights_of_another_number_of_dimensions_are_refused(shape):
    for rescale, dimensions in ((rescale_dense, 2), (rescale_conv, 4)):
        if len(shape) != dimensions:
            with pytest.raises(ValueError, match=rf"^{rescale.__name__}: .*, got \("):
                rescale(torch.ones(shape))


@pytest.mark.parametrize("rescale", [rescale_conv, rescale_dense])
def test_second_derivatives_are_the_difference_quotient(rescale, way):
    """
    Also where the gradient is written by hand: autograd computes it if it is differentiated again.
    """
    weight = normal(*[3, 2, 2, 3][: 4 if rescale is rescale_conv else 2], seed=5).requires_grad_()

    assert gradgradcheck(rescale, weight, atol=1e-6)


@every_way
@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_signs_and_orders_of_channels_pass_through(shape, seed, data, way):
    with taken(way):
        kernel = normal(*shape, seed=seed)
        outputs = data.draw(st.permutations(range(shape[0])))
        inputs = data.draw(st.permutations(range(shape[1])))
        signs = torch.tensor(data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=4)))[:4]
        out_signs, in_signs = (
            signs[: shape[0], None, None, None],
            signs[None, : shape[1], None, None],
        )

        def change(weight):
            return (weight * out_signs * in_signs)[outputs][:, inputs]

        torch.testing.assert_close(rescale_conv(change(kernel)), change(rescale_conv(kernel)))


@every_way
@given(shape=SHAPES, seed=SEEDS)
def test_mirrored_kernels_are_rescaled_to_mirrored_kernels(shape, seed, way):
    with taken(way):
        kernel = normal(*shape, seed=seed)

        for axes in [(2,), (3,), (2, 3)]:
            torch.testing.assert_close(
                rescale_conv(kernel.flip(axes)), rescale_conv(kernel).flip(axes)
            )


@every_way
@given(shape=SHAPES, seed=SEEDS, factor=st.sampled_from([1e2, 1e4, -1e3]))
def test_the_size_of_a_large_kernel_cancels(shape, seed, factor, way):
    """
    Up to EPS, whose share of a channel's sum is below 1e-6 where the sum is above 1.
    """
    with taken(way):
        kernel = normal(*shape, seed=seed, spread=10.0)
        kernel[0] += 3.0

        expected = rescale_conv(kernel) * (1 if factor > 0 else -1)
        torch.testing.assert_close(rescale_conv(kernel * factor), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_channels_stay_zero_and_finite(dtype, way):
    kernel = normal(4, 3, 3, 3, seed=1).to(dtype)
    kernel[:, 1] = 0
    kernel.requires_grad_()

    rescaled = rescale_conv(kernel)
    (gradient,) = torch.autograd.grad(rescaled.square().sum(), kernel)

    assert (rescaled[:, 1] == 0).all()
    assert conv_scale(kernel.detach())[1] == pytest.approx(EPS**-0.5)
    assert rescaled.isfinite().all()
    assert gradient.isfinite().all()


def test_an_all_zero_kernel_has_a_finite_gradient(way):
    kernel = torch.zeros(2, 3, 2, 2, requires_grad=True)
    rescaled = rescale_conv(kernel)
    (gradient,) = torch.autograd.grad(rescaled.sum(), kernel)

    assert (rescaled == 0).all()
    torch.testing.assert_close(gradient, torch.full_like(gradient, 1e3))


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (40, 40, 3, 3), (80, 80, 3, 3), (300, 300, 1, 1)])
def test_autocast_does_not_lower_the_precision(shape, way):
    kernel = normal(*shape, seed=2).float()
    plain = rescale_conv(kernel)

    with torch.autocast("cpu", torch.bfloat16):
        cast = rescale_conv(kernel)

    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@every_way
@pytest.mark.parametrize("stacked", [rescale_convs, rescale_denses])
def test_autocast_does_not_lower_the_precision_of_stacked_kernels(stacked, way):
    kernels = normal(*[2, 5, 4, 3, 3][: 5 if stacked is rescale_convs else 3], seed=2).float()
    with taken(way):
        plain = stacked(kernels)
        with torch.autocast("cpu", torch.bfloat16):
            cast = stacked(kernels)

    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


def test_the_input_is_not_changed(way):
    kernel = normal(3, 4, 3, 2, seed=3)
    before = kernel.clone()
    rescale_conv(kernel.requires_grad_()).sum().backward()

    assert torch.equal(kernel.detach(), before)


def test_memory_layout_does_not_matter(way):
    kernel = normal(4, 3, 3, 3, seed=4)
    upstream = normal(4, 3, 3, 3, seed=5)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        raw = kernel.clone(memory_format=layout).requires_grad_()
        rescaled = rescale_conv(raw)
        results.append((rescaled, *torch.autograd.grad((rescaled * upstream).sum(), raw)))

    torch.testing.assert_close(results[0], results[1])


# Inputs and outputs of the paper's layers, and some that are none of its.
WIDE = [(192, 48, 1), (192, 192, 3), (256, 256, 3), (64, 64, 3), (50, 49, 3), (48, 101, 3)]
WIDE_DENSE = [(1024, 1024), (700, 301), (96, 1025)]


def both_gradients(ours, theirs, weight):
    """
    Our rescaled weight and gradient and those of the plain formula, for one random upstream.
    """
    upstream = normal(*weight.shape, seed=8).to(weight.dtype)
    for function in (ours, theirs):
        raw = weight.clone().requires_grad_()
        rescaled = function(raw)
        yield rescaled.detach(), *torch.autograd.grad(rescaled, raw, upstream)


@pytest.mark.parametrize("shape", WIDE)
def test_wide_kernels_equal_autograd_of_the_plain_formula(shape):
    outputs, inputs, size = shape
    kernel = normal(outputs, inputs, size, size, seed=7)

    ours, theirs = both_gradients(rescale_conv, plain.rescale_conv, kernel)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)
    assert worst(ours[1].numpy(), theirs[1].numpy()) <= 1e-12


@pytest.mark.parametrize("shape", WIDE_DENSE)
def test_wide_matrices_equal_autograd_of_the_plain_formula(shape):
    matrix = normal(*shape, seed=7)

    ours, theirs = both_gradients(rescale_dense, plain.rescale_dense, matrix)
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)
    assert worst(ours[1].numpy(), theirs[1].numpy()) <= 1e-12


@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-4])
def test_a_wide_kernel_near_the_identity_is_exact_in_float32(spread):
    """
    Against float64 with the same numbers: weights to 1e-5 relative, gradients of the largest
    entry's size (seen: 2e-6 and 5e-6), though taps differ by four orders of magnitude.
    """
    kernel = spread * normal(120, 120, 3, 3, seed=9)
    kernel[:, :, 1, 1] += torch.eye(120, dtype=torch.float64)
    kernel = kernel.float()

    (ours, theirs) = (
        list(both_gradients(rescale_conv, plain.rescale_conv, kernel.to(dtype)))[index]
        for index, dtype in ((0, torch.float32), (1, torch.float64))
    )
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=1e-5, atol=0)
    assert worst(ours[1].numpy(), theirs[1].numpy()) <= 1e-5


@pytest.mark.parametrize("width", [60, 130])  # products by MKL and by oneDNN
@pytest.mark.parametrize("kept", ["centre", "row", "column", "two rows"])
def test_kernels_without_some_rows_or_columns_have_zeros_in_their_gram_kernel(kept, width):
    """
    In float32, where rounding must not make a sign out of nothing.
    """
    window = {
        "centre": (slice(1, 2), slice(1, 2)),
        "row": (slice(1, 2), slice(None)),
        "column": (slice(None), slice(2, 3)),
        "two rows": (slice(0, 3, 2), slice(None)),
    }[kept]
    kernel = torch.zeros(width, width, 3, 3)
    kernel[:, :, *window] = normal(width, width, 3, 3, seed=3).float()[:, :, *window]
    ones = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    ones[:, :, *window] = 1

    reachable = gram.gram(ones[None])[:, 0, 0, 0] > 0
    nonzero = gram.gram(kernel[None]).abs().amax((1, 2, 3)) > 0
    assert torch.equal(nonzero, reachable)


@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (60, 50, 3, 3), (7, 6, 2, 4), (300, 280, 1, 1)])
def test_stacked_kernels_equal_one_by_one(shape, way):
    """
    But for the order in which a library sums, in float64 to the last digits.
    """
    kernels = normal(3, *shape, seed=11).requires_grad_()
    upstream = normal(3, *shape, seed=12)
    stacked = rescale_convs(kernels)
    (gradient,) = torch.autograd.grad(stacked, kernels, upstream)

    for index in range(3):
        kernel = kernels.detach()[index].requires_grad_()
        alone = rescale_conv(kernel)
        (gradient_alone,) = torch.autograd.grad(alone, kernel, upstream[index])
        torch.testing.assert_close(alone, stacked[index], rtol=1e-13, atol=0)
        assert worst(gradient_alone.numpy(), gradient[index].numpy()) <= 1e-13


def test_stacked_matrices_equal_one_by_one():
    matrices = normal(3, 20, 600, seed=13)

    for matrix, rescaled in zip(matrices, rescale_denses(matrices), strict=True):
        torch.testing.assert_close(rescale_dense(matrix), rescaled, rtol=1e-13, atol=0)
