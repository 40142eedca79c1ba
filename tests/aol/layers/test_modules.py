import inspect
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradgradcheck

from aol.layers import plain
from aol.layers.modules import (
    AOLConv2d,
    AOLLinear,
    ConcatenationPooling,
    MaxMin,
    identity_,
    in_float64,
    repeated_orthogonal_,
    rescaled_once,
    rescaled_together,
)
from aol.layers.plain import FirstChannels, Flatten
from aol.ops.rescale import rescale_conv
from tests.support.golden_recipe import (
    golden,
    images_from_tf,
    images_to_tf,
    properties,
    text,
    weight_from_tf,
    weight_to_tf,
    worst,
)

LAYERS = golden("layers")
BASIC = golden("basic")
INITIALISERS = properties("initialisers")
SEEDS = st.integers(0, 2**32 - 1)

# torch says that it copies the input to pad an even kernel; that costs time, not correctness.
even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed, spread=1.0):
    return spread * torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def filled(layer, seed, *, spread=1.0):
    """
    Return the layer in float64 with a normal weight and bias.
    """
    layer = layer.double()
    layer.weight.data = normal(*layer.weight.shape, seed=seed, spread=spread)
    layer.bias.data = normal(*layer.bias.shape, seed=seed + 1)
    return layer


def operator(layer, *shape):
    """
    Return the layer's linear map on inputs of one shape, as a matrix (outputs, inputs).
    """
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        return (layer(basis) - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T


# --- the authors' outputs ---


def golden_layer(name):
    """
    Return our layer with the parameters of the case, its activation and its input.
    """
    weight = weight_from_tf(LAYERS[f"{name}_K"], torch.float32)
    if name.startswith("conv"):
        case = text(LAYERS[f"{name}_cfg"])
        layer = AOLConv2d(
            case["cin"],
            case["cout"],
            tuple(case["k"]),
            padding=case["padding"],
            dilation=case.get("dil", [1])[0],
        )
        relu = case.get("act") == "relu"
    else:
        layer = AOLLinear(*weight.T.shape)
        relu = str(LAYERS[f"{name}_act"]) == "relu"
    assert layer.weight.shape == weight.shape
    layer.weight.data = weight
    layer.bias.data = torch.tensor(LAYERS[f"{name}_b"])
    x = images_from_tf(LAYERS[f"{name}_x"], torch.float32).requires_grad_()
    return layer, nn.ReLU() if relu else nn.Identity(), x


GOLDEN_LAYERS = sorted(name.removesuffix("_x") for name in LAYERS.files if name.endswith("_x"))


def test_the_golden_file_has_every_layer():
    relus = [name for name in GOLDEN_LAYERS if isinstance(golden_layer(name)[1], nn.ReLU)]

    expected = [*(f"conv{i}" for i in range(9)), *(f"dense{i}" for i in range(4))]
    assert expected == GOLDEN_LAYERS
    assert "conv8" in relus
    assert any(name.startswith("dense") for name in relus)


@even_kernels
@pytest.mark.parametrize("name", GOLDEN_LAYERS)
def test_layer_equals_the_authors(name):
    layer, activation, x = golden_layer(name)

    y = activation(layer(x))

    assert worst(images_to_tf(y), LAYERS[f"{name}_y"]) <= 2e-6


@even_kernels
@pytest.mark.parametrize("name", [name for name in GOLDEN_LAYERS if f"{name}_gy" in LAYERS.files])
def test_gradients_of_a_layer_equal_the_authors(name):
    layer, activation, x = golden_layer(name)

    activation(layer(x)).backward(images_from_tf(LAYERS[f"{name}_gy"], torch.float32))

    assert worst(images_to_tf(x.grad), LAYERS[f"{name}_gx"]) <= 2e-6
    assert worst(weight_to_tf(layer.weight.grad), LAYERS[f"{name}_gK"]) <= 1e-5
    assert worst(layer.bias.grad.numpy(), LAYERS[f"{name}_gb"]) <= 2e-6


def test_only_the_dilated_layer_lacks_golden_gradients():
    """
    For conv7 the file has the forward pass only.
    """
    without = [name for name in GOLDEN_LAYERS if f"{name}_gy" not in LAYERS.files]

    assert [text(LAYERS[f"{name}_cfg"])["dil"] for name in without] == [[2, 2]]


@pytest.mark.parametrize("name", [name for name in GOLDEN_LAYERS if name != "conv7"])
def test_regularisation_loss_is_of_the_raw_parameters(name):
    layer, _, _ = golden_layer(name)

    assert 5e-4 * layer.weight.square().sum().item() == pytest.approx(
        float(LAYERS[f"{name}_regloss"]), rel=1e-6
    )


@pytest.mark.parametrize("name", ["maxmin0", "maxmin1", "maxmin2"])
def test_maxmin_and_its_gradient_equal_the_authors_also_at_ties(name):
    channels_last = torch.tensor(BASIC[f"{name}_x"])
    x = channels_last.movedim(-1, 1).requires_grad_()
    upstream = torch.tensor(BASIC[f"{name}_gy"]).movedim(-1, 1)

    y = MaxMin()(x)
    (gradient,) = torch.autograd.grad(y, x, upstream)

    assert np.array_equal(y.detach().movedim(1, -1), BASIC[f"{name}_y"])
    assert np.array_equal(gradient.movedim(1, -1), BASIC[f"{name}_gx"])


def test_the_golden_maxmin_has_ties():
    for name in ("maxmin1", "maxmin2"):
        x = BASIC[f"{name}_x"]
        assert (x[..., 0::2] == x[..., 1::2]).any()


@pytest.mark.parametrize("name", ["concat0", "concat1", "concat2"])
def test_concatenation_pooling_equals_the_authors(name):
    size, strides, padding = text(BASIC[f"{name}_cfg"])
    assert (strides, padding) == (None, "valid")

    y = ConcatenationPooling(*size)(images_from_tf(BASIC[f"{name}_x"], torch.float32))

    assert np.array_equal(images_to_tf(y), BASIC[f"{name}_y"])


@pytest.mark.parametrize("name", ["concat3", "concat4"])
def test_patches_that_overlap_are_concatenated_in_the_same_order(name):
    """
    The authors' layer can also overlap and pad its patches, which is no isometry and in no network
    of the paper: ours has no option for it. Laid side by side their patches are ours.
    """
    (size, _), (stride, _), padding = text(BASIC[f"{name}_cfg"])
    assert padding == "same"
    x = images_from_tf(BASIC[f"{name}_x"], torch.float32)
    expected = BASIC[f"{name}_y"]
    missing = [
        stride * (after - 1) + size - before
        for after, before in zip(expected.shape[1:3], x.shape[2:], strict=True)
    ]
    top, left = (total // 2 for total in missing)
    x = F.pad(x, (left, missing[1] - left, top, missing[0] - top))
    tiles = x.unfold(2, size, stride).unfold(3, size, stride)
    side_by_side = tiles.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    assert np.array_equal(images_to_tf(ConcatenationPooling(size, size)(side_by_side)), expected)


def test_first_channels_equals_the_authors():
    images = images_from_tf(BASIC["first_x4"], torch.float32)
    rows = torch.tensor(BASIC["first_x2"])

    assert np.array_equal(images_to_tf(FirstChannels(4)(images)), BASIC["first_y4"])
    assert np.array_equal(FirstChannels(10)(rows), BASIC["first_y2"])


def test_flatten_equals_the_authors():
    images = images_from_tf(BASIC["first_x4"], torch.float32)

    assert np.array_equal(Flatten()(images), BASIC["flatten_y"])


# --- formulas as loops ---


@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    height=st.integers(3, 7),
    width=st.integers(3, 7),
)
def test_concatenation_pooling_orders_row_column_channel(rows, columns, height, width):
    x = torch.arange(2.0 * 3 * height * width).view(2, 3, height, width)

    y = ConcatenationPooling(rows, columns)(x)

    assert y.shape == (2, rows * columns * 3, height // rows, width // columns)
    for channel in range(3):
        for row in range(rows):
            for column in range(columns):
                part = x[:, channel, row::rows, column::columns][..., : y.shape[2], : y.shape[3]]
                assert torch.equal(y[:, (row * columns + column) * 3 + channel], part)


@given(pairs=st.integers(1, 4), rank=st.integers(0, 2), seed=SEEDS)
def test_maxmin_interleaves_the_larger_and_the_smaller(pairs, rank, seed):
    x = normal(2, 2 * pairs, *[3] * rank, seed=seed)

    y = MaxMin()(x)

    for i in range(pairs):
        assert torch.equal(y[:, 2 * i], torch.max(x[:, 2 * i], x[:, 2 * i + 1]))
        assert torch.equal(y[:, 2 * i + 1], torch.min(x[:, 2 * i], x[:, 2 * i + 1]))


def test_second_derivatives_of_maxmin_pass_gradgradcheck():
    assert gradgradcheck(MaxMin(), normal(2, 4, 3, 3, seed=0).requires_grad_())


def test_an_odd_number_of_channels_cannot_be_paired():
    with pytest.raises(ValueError, match=r"shape \(1, 3, 2\); .* even number of channels"):
        MaxMin()(torch.zeros(1, 3, 2))


@even_kernels
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["same", "valid"]),
    dilation=st.integers(1, 2),
    seed=SEEDS,
)
@settings(max_examples=20)
def test_convolution_is_the_sum_over_taps(kernel, padding, dilation, seed):
    """
    "same" puts the extra row and column of an even kernel below and to the right.
    """
    layer = filled(AOLConv2d(2, 3, kernel, padding=padding, dilation=dilation), seed)
    x = normal(1, 2, 8, 9, seed=seed + 2)
    weight = layer.rescaled().detach()
    height, width = [dilation * (size - 1) for size in kernel]
    if padding == "same":
        above, left = height // 2, width // 2
        padded = F.pad(x, (left, width - left, above, height - above))
    else:
        padded = x
    expected = layer.bias.detach()[None, :, None, None]
    rows, columns = padded.shape[2] - height, padded.shape[3] - width
    for k in range(kernel[0]):
        for m in range(kernel[1]):
            window = padded[:, :, k * dilation :, m * dilation :][:, :, :rows, :columns]
            expected = expected + torch.einsum("oi,nihw->nohw", weight[:, :, k, m], window)

    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-12, atol=1e-12)


# --- the bound ---


@even_kernels
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["same", "valid"]),
    dilation=st.integers(1, 2),
    spread=st.sampled_from([1e-4, 1e-2, 1.0, 1e3]),
    seed=SEEDS,
)
def test_no_convolution_stretches_a_difference(channels, kernel, padding, dilation, spread, seed):
    layer = AOLConv2d(*channels, kernel, padding=padding, dilation=dilation)
    layer = filled(layer, seed, spread=spread)
    x, y = normal(2, 1, channels[0], 8, 8, seed=seed + 2)

    assert (layer(x) - layer(y)).norm() <= (x - y).norm() * (1 + 1e-12)


@even_kernels
@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["same", "valid"]),
    positive=st.booleans(),
    dead=st.booleans(),
    seed=SEEDS,
)
def test_largest_singular_value_of_a_convolution_is_at_most_one(
    channels, kernel, padding, positive, dead, seed
):
    """
    Of the explicit operator. Positive kernels are the tight case: every |V| is V.
    """
    layer = filled(AOLConv2d(*channels, kernel, padding=padding), seed)
    spreads = torch.tensor([1.0, 30.0, 0.01], dtype=torch.float64)[: channels[0]]
    layer.weight.data *= spreads[:, None, None]
    if positive:
        layer.weight.data.abs_()
    if dead:
        layer.weight.data[:, -1] = 0
    matrix = operator(layer, channels[0], 6, 5)

    assert matrix.isfinite().all()
    assert torch.linalg.matrix_norm(matrix, 2) <= 1 + 1e-12


@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    rank_one=st.booleans(),
    spread=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=SEEDS,
)
def test_largest_singular_value_of_a_dense_layer_is_at_most_one(
    inputs, outputs, rank_one, spread, seed
):
    layer = filled(AOLLinear(inputs, outputs), seed, spread=spread)
    if rank_one:
        layer.weight.data = layer.weight.data[:, :1].abs() @ layer.weight.data[:1].abs()
    norm = torch.linalg.matrix_norm(layer.rescaled().detach(), 2)

    assert norm <= 1 + 1e-12


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    positive=st.booleans(),
    seed=SEEDS,
)
@settings(max_examples=30)
def test_the_scales_exceed_the_gram_matrix(channels, kernel, positive, seed):
    """
    The theorem itself: diag(d) - P^T P is positive semidefinite, P the operator of the raw kernel
    and d its channels' sums.
    """
    raw = normal(channels[1], channels[0], *kernel, seed=seed)
    raw *= torch.tensor([1.0, 30.0, 0.01], dtype=torch.float64)[: channels[0], None, None]
    if positive:
        raw.abs_()
    basis = torch.eye(channels[0] * 20, dtype=torch.float64).view(-1, channels[0], 4, 5)
    padding = (kernel[0] - 1, kernel[1] - 1)
    images = F.conv2d(basis, raw, padding=padding).flatten(1)
    sums = ((raw / rescale_conv(raw))[0, :, 0, 0] ** 2).repeat_interleave(20)

    rest = torch.linalg.eigvalsh(torch.diag(sums) - images @ images.T)
    assert rest.min() >= -1e-12 * sums.max()


def test_the_bound_is_reached_by_positive_matrices_of_rank_one():
    layer = AOLLinear(5, 7).double()
    layer.weight.data = torch.arange(1.0, 8).double()[:, None] * torch.ones(5).double()

    assert torch.linalg.matrix_norm(layer.rescaled().detach(), 2) >= 1 - 1e-6


def test_one_constant_channel_approaches_the_bound_on_large_images():
    """
    A 3 x 3 mean has norm 1 on an infinite image and reaches it as the image grows.
    """
    layer = AOLConv2d(1, 1, 3, padding="same").double()
    layer.weight.data.fill_(1.0)

    norms = [torch.linalg.matrix_norm(operator(layer, 1, size, size), 2) for size in (4, 8, 16)]
    assert norms == sorted(norms)
    assert 0.97 < norms[-1] <= 1


@given(outputs=st.integers(1, 8), extra=st.integers(0, 6), seed=SEEDS)
def test_orthogonal_weights_stay_orthogonal(outputs, extra, seed):
    """
    The bound is tight for them: every singular value is 1 up to EPS.
    """
    inputs = outputs
    matrix = torch.linalg.qr(normal(outputs + extra, inputs, seed=seed)).Q
    dense = AOLLinear(inputs, outputs + extra).double()
    dense.weight.data = matrix
    convolution = AOLConv2d(inputs, outputs + extra, 3, padding="same").double()
    convolution.weight.data[:, :, 1, 1] = matrix

    for values in (
        torch.linalg.svdvals(dense.rescaled().detach()),
        torch.linalg.svdvals(operator(convolution, inputs, 3, 3)),
    ):
        assert values.min() >= 1 - 1e-6
        assert values.max() <= 1 + 1e-12


@given(seed=SEEDS)
@settings(max_examples=10)
def test_layers_without_parameters_keep_lengths(seed):
    x, y = normal(2, 1, 4, 6, 6, seed=seed)

    for layer in (ConcatenationPooling(2, 3), Flatten()):
        torch.testing.assert_close(layer(x).norm(), x.norm())
    torch.testing.assert_close(MaxMin()(x).norm(), x.norm())
    for layer in (MaxMin(), FirstChannels(3)):
        assert (layer(x) - layer(y)).norm() <= (x - y).norm() * (1 + 1e-12)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding"),
    [
        (3, 1, 0),
        (3, 1, "valid"),
        (3, 1, "same"),
        (3, 1, 1),
        (3, 1, (1, 0)),
        (5, 2, 4),
        ((3, 5), (2, 1), (2, 2)),
        (4, 1, 0),
        (4, 2, "valid"),
    ],
)
def test_paddings_of_the_authors_layer_are_those_of_torchs(kernel, dilation, padding):
    layer = filled(AOLConv2d(2, 3, kernel, 1, padding, dilation), 0)
    theirs = nn.Conv2d(2, 3, kernel, 1, padding, dilation).double()
    theirs.load_state_dict({"weight": layer.rescaled(), "bias": layer.bias})
    x = normal(2, 2, 11, 12, seed=1)

    assert torch.equal(layer(x), theirs(x))
    assert torch.linalg.matrix_norm(operator(layer, 2, 9, 10), 2) <= 1 + 1e-12


def test_a_padding_of_half_the_kernel_equals_same():
    number, word = (filled(AOLConv2d(2, 3, 3, padding=padding), 0) for padding in (1, "same"))
    x = normal(2, 2, 6, 7, seed=1)

    assert torch.equal(number(x), word(x))
    assert number(x).shape == (2, 3, 6, 7)
    assert filled(AOLConv2d(2, 3, 3), 0)(x).shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "allowed"),
    [
        (3, 1, 2, r", 'same' or \(1, 1\), got \(2, 2\)"),
        (3, 1, (1, 2), r", 'same' or \(1, 1\), got \(1, 2\)"),
        (3, 1, -1, r", 'same' or \(1, 1\), got \(-1, -1\)"),
        (3, 2, 1, r", 'same' or \(2, 2\), got \(1, 1\)"),
        (4, 1, 1, r" or 'same', got \(1, 1\)"),
        (3, 1, "reflect", r", 'same' or \(1, 1\), got 'reflect'"),
    ],
)
def test_other_paddings_are_refused_with_the_reason(kernel, dilation, padding, allowed):
    with pytest.raises(ValueError, match=rf"padding must be 0, 'valid'{allowed}: .*nn\.ZeroPad2d"):
        AOLConv2d(3, 4, kernel, padding=padding, dilation=dilation)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"stride": 2}, r"stride must be 1, got \(2, 2\): .*ConcatenationPooling"),
        ({"stride": (1, 2)}, r"stride must be 1, got \(1, 2\)"),
        ({"groups": 2}, "groups must be 1, got 2: .*add up all groups"),
        (
            {"padding_mode": "reflect"},
            "padding_mode must be 'zeros', got 'reflect': .*exceed norm 1",
        ),
        ({"padding_mode": "replicate"}, "padding_mode must be 'zeros', got 'replicate'"),
        ({"padding_mode": "circular"}, "padding_mode must be 'zeros', got 'circular'"),
        ({"stride": 2, "groups": 4, "padding": "reflect"}, "stride .*; groups .*; padding"),
    ],
)
def test_options_without_a_proven_bound_are_refused_with_the_reason(option, message):
    with pytest.raises(ValueError, match=message):
        AOLConv2d(4, 4, 3, **option)


def test_a_stride_of_one_is_accepted_in_both_of_torchs_forms():
    assert AOLConv2d(4, 4, 3, (1, 1)).weight.shape == AOLConv2d(4, 4, 3, 1).weight.shape


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_borders_that_are_not_zero_do_exceed_the_bound(mode):
    """
    The reason for refusing them, shown on our own rescaled kernel.
    """
    layer = AOLConv2d(1, 1, 3, padding="same").double()
    layer.weight.data = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]).double()[None, None]
    weight = layer.rescaled().detach()
    basis = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    padded = F.conv2d(F.pad(basis, (1, 1, 1, 1), mode=mode), weight).flatten(1)

    assert torch.linalg.matrix_norm(padded, 2) > 1.001
    assert torch.linalg.matrix_norm(operator(layer, 1, 4, 4), 2) <= 1


# --- the start of training ---


def initialised(layer, seed=0):
    layer.reset_parameters(seeded(seed))
    return layer


def test_every_golden_property_is_tested():
    looked_at = ("repeated_orthogonal (1,1,64,32)", "repeated_orthogonal (1,1,48,192)")
    others = (
        "identity_center",
        "orthogonal_center",
        "repeated_orthogonal (2,2",
        "orthogonal dense",
    )

    assert all(name in looked_at or name.startswith(others) for name in INITIALISERS)


@pytest.mark.parametrize("seed", range(5))
def test_narrowing_orthogonal_weights_share_directions_like_the_authors(seed):
    """
    64 inputs, 32 outputs: each input has one basis vector over the root of its number of users.
    """
    theirs = INITIALISERS["repeated_orthogonal (1,1,64,32)"]
    layer = initialised(AOLConv2d(64, 32, 1), seed)
    matrix = layer.weight.detach()[:, :, 0, 0].double()
    gram = matrix.T @ matrix
    same = gram.abs() > 1e-4
    users = same.sum(1)

    assert theirs["rows_norm_sq_is_1_over_count"]
    torch.testing.assert_close(gram.diagonal(), 1 / users.double(), rtol=1e-5, atol=0)
    assert theirs["row_sums_absJ_min"] == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(gram.abs().sum(1), torch.ones(64).double(), rtol=0, atol=1e-5)
    assert theirs["n_zero_rows"] == 0
    assert (matrix.norm(dim=0) > 0).all()
    assert theirs["spectral_norm"] == pytest.approx(1, abs=1e-5)
    assert torch.linalg.matrix_norm(matrix, 2) == pytest.approx(1, abs=1e-5)


def test_directions_are_drawn_with_replacement():
    """
    64 draws from 32 directions meet 32 * (1 - (31/32)**64) = 27.8 of them, give or take 1.5.
    """
    counts = []
    for seed in range(40):
        matrix = torch.empty(32, 64)
        repeated_orthogonal_(matrix, seeded(seed))
        same = (matrix.T @ matrix).abs() > 1e-4
        counts.append(len({tuple(row.tolist()) for row in same}))

    theirs = INITIALISERS["repeated_orthogonal (1,1,64,32)"]["distinct_directions"]
    assert min(counts) <= theirs <= max(counts)
    assert np.mean(counts) == pytest.approx(32 * (1 - (31 / 32) ** 64), abs=0.8)


def test_repeated_orthogonal_weights_survive_the_rescaling():
    for inputs, outputs in [(64, 32), (32, 64), (17, 5), (6, 6)]:
        layer = initialised(AOLLinear(inputs, outputs))
        torch.testing.assert_close(layer.rescaled(), layer.weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (AOLConv2d(48, 192, 1), "repeated_orthogonal (1,1,48,192)"),
        (AOLConv2d(3, 12, 2), "repeated_orthogonal (2,2,3,12)"),
        (AOLLinear(192, 256), "orthogonal dense (192,256)"),
    ],
    ids=["1x1", "2x2", "dense"],
)
def test_widening_orthogonal_weights_have_orthonormal_columns(layer, name):
    weight = initialised(layer).weight.detach()
    columns = weight.transpose(1, -1).reshape(-1, weight.shape[1])
    error = (columns.T @ columns - torch.eye(weight.shape[1])).abs().max()

    assert INITIALISERS[name]["WWt_minus_I_max"] < 1e-6
    assert error < 1e-5


@pytest.mark.parametrize("name", [n for n in INITIALISERS if n.startswith("identity_center")])
def test_the_identity_sits_at_the_authors_centre(name):
    (centre,) = INITIALISERS[name]["center_tap"]
    size = tuple(int(number) for number in name.split("(")[1].strip(")").split(","))
    layer = initialised(AOLConv2d(4, 4, size, padding="same", initialiser=identity_))

    expected = torch.zeros(4, 4, *size)
    expected[:, :, centre[0], centre[1]] = torch.eye(4)
    assert INITIALISERS[name]["is_eye"]
    assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize("name", [n for n in INITIALISERS if n.startswith("orthogonal_center")])
def test_orthogonal_weights_sit_at_the_authors_centre(name):
    (centre,) = INITIALISERS[name]["center_tap"]
    size = tuple(int(number) for number in name.split("(")[1].split(")")[0].split(","))
    layer = initialised(AOLConv2d(4, 6, size))
    weight = layer.weight.detach().clone()
    middle = weight[:, :, centre[0], centre[1]].clone()
    weight[:, :, centre[0], centre[1]] = 0

    assert weight.abs().max() == 0
    torch.testing.assert_close(middle.T @ middle, torch.eye(4), rtol=0, atol=1e-5)


@even_kernels
@pytest.mark.parametrize("size", [1, 2, 3, (4, 5)])
def test_an_identity_layer_starts_as_the_identity(size):
    x = torch.rand(2, 4, 6, 7, generator=seeded(1))
    layer = initialised(AOLConv2d(4, 4, size, padding="same", initialiser=identity_))

    torch.testing.assert_close(layer(x), x, rtol=1e-6, atol=1e-6)


def test_initialising_replaces_the_earlier_values():
    layer = AOLConv2d(4, 4, 3)
    layer.weight.data.fill_(3.0)
    layer.bias.data.fill_(3.0)

    fresh = initialised(AOLConv2d(4, 4, 3), seed=7)
    layer = initialised(layer, seed=7)

    assert torch.equal(layer.weight, fresh.weight)
    assert (layer.bias == 0).all()


@pytest.mark.parametrize("layer", [AOLLinear(6, 4), AOLLinear(4, 6), AOLConv2d(6, 4, 3)])
def test_the_generator_determines_the_weights(layer):
    first = initialised(layer, 1).weight.detach().clone()
    again = initialised(layer, 1).weight.detach().clone()
    other = initialised(layer, 2).weight.detach().clone()

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_initialisers_do_not_use_the_global_generator():
    before = torch.random.get_rng_state()
    repeated_orthogonal_(torch.empty(4, 6), seeded(0))
    repeated_orthogonal_(torch.empty(6, 4), seeded(0))
    identity_(torch.empty(4, 4), seeded(0))

    assert torch.equal(torch.random.get_rng_state(), before)


# --- as layers of torch ---


@pytest.mark.parametrize(
    ("ours", "theirs"), [(AOLLinear, nn.Linear), (AOLConv2d, nn.Conv2d)], ids=["linear", "conv"]
)
def test_constructors_have_torchs_arguments_in_torchs_order(ours, theirs):
    mine, torchs = (inspect.signature(kind).parameters for kind in (ours, theirs))
    shared = list(mine)[: len(torchs)]

    assert shared == list(torchs)
    assert [mine[name].default for name in shared] == [torchs[name].default for name in shared]
    assert list(mine)[len(torchs) :] == ["initialiser", "generator"]
    assert all(mine[name].kind.name == "KEYWORD_ONLY" for name in ("initialiser", "generator"))


@pytest.mark.parametrize("bias", [True, False])
def test_state_dicts_have_the_names_and_shapes_of_torchs(bias):
    pairs = [
        (AOLLinear(5, 4, bias), nn.Linear(5, 4, bias)),
        (AOLConv2d(3, 4, (2, 3), bias=bias), nn.Conv2d(3, 4, (2, 3), bias=bias)),
    ]
    for ours, theirs in pairs:
        shapes = [{n: t.shape for n, t in one.state_dict().items()} for one in (ours, theirs)]
        assert shapes[0] == shapes[1]
        assert (ours.bias is None) == (not bias)


def test_layers_without_a_bias_map_zeros_to_zeros():
    dense, convolution = AOLLinear(4, 3, bias=False), AOLConv2d(2, 3, 3, bias=False)

    assert (dense(torch.zeros(2, 4)) == 0).all()
    assert (convolution(torch.zeros(2, 2, 5, 5)) == 0).all()
    x = normal(2, 4, seed=1).float()
    assert torch.equal(dense(x), F.linear(x, dense.rescaled()))


def test_networks_without_a_bias_are_kept_and_copied():
    model = nn.Sequential(AOLConv2d(3, 4, 3, bias=False), Flatten(), AOLLinear(36, 6, bias=False))
    x = normal(2, 3, 5, 5, seed=2).float()
    with rescaled_together(model):
        scores = model(x)

    torch.testing.assert_close(scores, model(x))
    torch.testing.assert_close(in_float64(model)(x.double()), scores.double(), rtol=0, atol=1e-6)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "2.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_layers_are_created_in_the_given_dtype(dtype):
    for layer in (AOLLinear(6, 4, dtype=dtype), AOLConv2d(6, 4, 3, dtype=dtype)):
        assert {parameter.dtype for parameter in layer.parameters()} == {dtype}
        centre = layer.weight[..., 1, 1] if layer.weight.ndim == 4 else layer.weight
        norms = centre.double().norm(dim=0) * 6**0.5
        assert bool(((norms > 0.9) & (norms < 2.5)).all())


def test_layers_are_created_on_the_given_device():
    for layer in (AOLLinear(6, 4, device="meta"), AOLConv2d(6, 4, 3, device="meta")):
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        layer.reset_parameters()
    before = torch.random.get_rng_state()
    with torch.device("meta"):
        assert AOLLinear(6, 4).weight.is_meta
    assert torch.equal(torch.random.get_rng_state(), before)


def test_layers_can_be_created_without_initialising_them():
    before = torch.random.get_rng_state()
    layer = nn.utils.skip_init(AOLConv2d, 3, 4, 3, bias=False)

    assert layer.weight.shape == (4, 3, 3, 3)
    assert not layer.weight.is_meta
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "make", [lambda **o: AOLLinear(6, 4, **o), lambda **o: AOLConv2d(6, 4, 3, **o)]
)
def test_a_new_layer_is_initialised_as_in_the_paper(make):
    """
    Without a generator torch's own is used, so `torch.manual_seed` determines the weights.
    """
    given = make(generator=seeded(3))
    torch.manual_seed(3)
    default, other = make(), make()

    assert torch.equal(given.weight, default.weight)
    assert not torch.equal(other.weight, default.weight)
    assert (given.bias == 0).all()
    torch.testing.assert_close(given.rescaled(), given.weight, rtol=1e-5, atol=1e-5)


def test_initialisers_of_torch_can_be_used():
    ours = AOLLinear(6, 4, initialiser=nn.init.xavier_normal_, generator=seeded(1))
    theirs = torch.empty(4, 6)
    nn.init.xavier_normal_(theirs, generator=seeded(1))

    assert torch.equal(ours.weight, theirs)
    ours.reset_parameters(seeded(2))
    assert not torch.equal(ours.weight, theirs)


def test_layers_show_their_arguments():
    shown = {
        "AOLLinear(in_features=6, out_features=4, bias=True)": AOLLinear(6, 4),
        "AOLLinear(in_features=6, out_features=4, bias=False)": AOLLinear(6, 4, False),
        "AOLConv2d(3, 4, kernel_size=(3, 3))": AOLConv2d(3, 4, 3),
        "AOLConv2d(3, 4, kernel_size=(3, 5), padding=same, dilation=(2, 2), bias=False)": AOLConv2d(
            3, 4, (3, 5), padding="same", dilation=2, bias=False
        ),
        "AOLConv2d(3, 4, kernel_size=(3, 3), padding=(1, 1))": AOLConv2d(3, 4, 3, padding=1),
        "MaxMin()": MaxMin(),
        "ConcatenationPooling(2, 3)": ConcatenationPooling(2, 3),
        "FirstChannels(4)": FirstChannels(4),
        "Flatten()": Flatten(),
    }

    assert {text: repr(layer) for text, layer in shown.items()} == {text: text for text in shown}


def test_inputs_may_have_more_or_fewer_dimensions_as_with_torch():
    dense, convolution = AOLLinear(6, 4), AOLConv2d(3, 4, 3)
    x, image = normal(2, 5, 6, seed=1).float(), normal(3, 5, 5, seed=1).float()

    torch.testing.assert_close(dense(x)[1, 2], dense(x[1, 2]))
    torch.testing.assert_close(convolution(image), convolution(image[None])[0])
    assert torch.equal(MaxMin()(image[:2, 0, 0]), MaxMin()(image[None, :2, 0, 0])[0])


def test_maxmin_and_pooling_are_those_of_exported_networks():
    assert issubclass(MaxMin, plain.MaxMin)
    assert ConcatenationPooling is plain.ConcatenationPooling
    for shape in ((3, 6), (2, 4, 5, 6), (2, 4, 3), (6,)):
        x = normal(*shape, seed=4)
        assert torch.equal(MaxMin()(x), plain.MaxMin()(x))


@pytest.mark.parametrize("shape", [(2, 3), (3,), ()])
def test_inputs_that_cannot_be_paired_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"^MaxMin: got .*; it needs \(N, C, \.\.\.\) or \(C,\) with"
    ):
        MaxMin()(torch.zeros(shape))


@pytest.mark.parametrize(
    "shape", [(), (6,), (2, 12), (2, 3, 4), (2, 1, 3, 4, 4), (1, 3, 1, 4), (1, 3, 4, 2)]
)
def test_inputs_without_a_patch_are_refused(shape):
    with pytest.raises(ValueError, match=r"^ConcatenationPooling: got .* it needs \(N, C, H, W\)"):
        ConcatenationPooling(2, 3)(torch.zeros(shape))


# --- weights kept for evaluation ---


def small_network():
    network = nn.Sequential(
        AOLConv2d(3, 4, 3, padding=1), MaxMin(), Flatten(), AOLLinear(64, 6), FirstChannels(5)
    )
    for seed, index in enumerate((0, 3)):
        filled(network[index], seed)
    return network.double()


def test_kept_weights_give_equal_scores():
    network = small_network()
    x = normal(2, 3, 4, 4, seed=3)
    expected = network(x)

    with rescaled_once(network):
        assert torch.equal(network(x), expected)
        assert torch.equal(network(x), expected)


def test_kept_weights_are_rescaled_once_and_then_dropped():
    network = small_network()
    x = normal(2, 3, 4, 4, seed=3)
    with rescaled_once(network):
        kept = network[0].rescaled()
        network(x)
        assert network[0].rescaled() is kept
        assert not kept.requires_grad

    assert network[0].rescaled() is not kept
    network(x).sum().backward()
    assert network[0].weight.grad.abs().sum() > 0


def test_a_float64_copy_applies_exactly_the_weights_of_the_float32_model():
    model = nn.Sequential(AOLConv2d(3, 4, 3, padding=1), Flatten(), AOLLinear(100, 6))
    for parameter in model.parameters():
        parameter.data = normal(*parameter.shape, seed=1).float()
    copy = in_float64(model)

    for index in (0, 2):
        assert torch.equal(copy[index].rescaled(), model[index].rescaled().double())
        assert model[index]._kept is None
        assert model[index].weight.requires_grad
    x = normal(2, 3, 5, 5, seed=2)
    torch.testing.assert_close(copy(x), model(x.float()).double(), rtol=1e-4, atol=1e-4)
    assert copy(x).dtype == torch.float64


def test_a_float64_copy_of_a_float64_copy_applies_the_same_weights():
    """
    Rescaling the raw parameters of the copy in float64 would give other weights.
    """
    model = nn.Sequential(AOLConv2d(3, 4, 3, padding=1), Flatten(), AOLLinear(100, 6))
    for parameter in model.parameters():
        parameter.data = normal(*parameter.shape, seed=1).float()
    copy = in_float64(model)
    again = in_float64(copy)

    for index in (0, 2):
        assert torch.equal(again[index].rescaled(), copy[index].rescaled())
        assert torch.equal(copy[index].rescaled(), model[index].rescaled().double())


@pytest.mark.parametrize("block", [rescaled_once, rescaled_together])
def test_a_block_restores_the_weights_that_were_kept_before_it(block):
    network = small_network()
    with rescaled_once(network):
        kept = [network[index].rescaled() for index in (0, 3)]
        with block(network):
            pass
        assert all(network[i].rescaled() is k for i, k in zip((0, 3), kept, strict=True))
        with pytest.raises(KeyError), block(network):
            raise KeyError
        assert all(network[i].rescaled() is k for i, k in zip((0, 3), kept, strict=True))

    assert network[0].rescaled() is not kept[0]


def test_kept_weights_are_dropped_after_an_error():
    network = small_network()
    with pytest.raises(KeyError), rescaled_once(network):
        raise KeyError

    network(normal(2, 3, 4, 4, seed=3)).sum().backward()
    assert network[3].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("fused", [False, True])
def test_an_evaluation_after_a_step_uses_the_new_weights(fused):
    """
    Fused optimisers do not raise a tensor's version counter, so a cache keyed on it goes stale.
    """
    network = small_network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, fused=fused)
    x = normal(2, 3, 4, 4, seed=3)
    with torch.no_grad(), rescaled_once(network):
        before = network(x)

    network(x).square().sum().backward()
    optimizer.step()

    with torch.no_grad(), rescaled_once(network):
        after = network(x)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(after, network(x))


def test_the_state_dict_has_raw_parameters_only():
    network = small_network()
    names = ["0.weight", "0.bias", "3.weight", "3.bias"]

    with rescaled_once(network):
        assert list(network.state_dict()) == names
        assert torch.equal(network.state_dict()["0.weight"], network[0].weight)


def test_layers_keep_channels_last():
    x = torch.rand(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)

    for layer in (MaxMin(), ConcatenationPooling(2, 2)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
