import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from aol.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from aol.layers.modules import AOLConv2d, AOLLinear, ConcatenationPooling, rescaled_once
from aol.models.architectures import architecture, build_model
from aol.models.flops import Layer, layers_of, parameters, training_flop
from aol.ops import algorithms
from aol.ops.rescale import rescale_conv, rescale_dense

NARROW = [
    ModelConfig(kind="patchwise", size=16, width=0.125),
    ModelConfig(kind="fc", width=1 / 64),
    ModelConfig(kind="conv", size=16, width=0.25),
    ModelConfig(kind="std", width=0.25),
]
PAPERS = [
    ModelConfig(kind="patchwise", size=16),
    ModelConfig(kind="patchwise", size=32),
    ModelConfig(kind="patchwise", size=48),
    ModelConfig(kind="fc"),
    ModelConfig(kind="conv", size=16),
    ModelConfig(kind="std"),
]


def name_of(config):
    return f"{config.kind}{config.size}-{config.width:.3g}"


def counter():
    """
    Return torch's counter, extended to products in place.
    """

    def flop(_, left, right, **others):
        return 2 * left[0] * left[1] * right[1]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: flop})


@pytest.fixture
def counted_products(monkeypatch):
    """
    Avoid oneDNN's products, which torch does not count.
    """
    monkeypatch.setattr("aol.ops.matmul.ONEDNN_FROM", 1 << 30)


@pytest.mark.parametrize("config", [*NARROW, *PAPERS], ids=name_of)
def test_the_layers_are_those_of_the_network(config):
    model = architecture(config, 10)
    found, side = [], 32
    for layer in model:
        if isinstance(layer, ConcatenationPooling):
            side //= layer.rows
        elif isinstance(layer, AOLConv2d):
            outputs, inputs, rows, columns = layer.weight.shape
            assert rows == columns
            found.append(Layer(outputs, inputs, rows, side))
        elif isinstance(layer, AOLLinear):
            found.append(Layer(*layer.weight.shape))

    assert layers_of(config) == found
    assert parameters(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("config", NARROW, ids=name_of)
def test_flop_of_a_run_are_those_that_torch_counts(config, counted_products):
    """
    A run consists of a forward pass per image and twice that backward, a rescaling per step, and
    three evaluations of a fifth of the images with kept weights.
    """
    run = TrainConfig(
        model=config,
        data=DataConfig(name="digits", train_limit=300),
        loss=LossConfig(offset=1.0, temperature=1.0),
        batch_size=110,
        epochs=10,
        eval_every=4,
    )
    model = build_model(config, 10, torch.Generator().manual_seed(0))
    with rescaled_once(model), counter() as image:
        model(torch.zeros(1, 3, 32, 32))
    with counter() as rescaling:
        for layer in model:
            if isinstance(layer, AOLConv2d | AOLLinear):
                layer.rescaled().sum().backward()

    steps, evaluations = 10 * 3, 3  # after epochs 4, 8 and the last
    expected = 300 * (3 * 10 + evaluations / 5) * image.get_total_flops()
    expected += steps * rescaling.get_total_flops()
    assert training_flop(run) == pytest.approx(expected, rel=1e-12)


CHANNELS = st.integers(1, 64)


@given(outputs=CHANNELS, inputs=CHANNELS, kernel=st.sampled_from([1, 2, 3, 4]))
@settings(max_examples=60)
def test_flop_of_a_rescaling_are_those_that_torch_counts(outputs, inputs, kernel):
    weight = torch.zeros(outputs, inputs, kernel, kernel, device="meta", requires_grad=True)
    with counter() as counted:
        rescale_conv(weight).sum().backward()

    assert Layer(outputs, inputs, kernel).rescale_flop == counted.get_total_flops()


@pytest.mark.parametrize("inputs", [255, 256, 512, 513, 1030, 2051])
def test_flop_of_a_dense_rescaling_are_those_that_torch_counts(inputs):
    weight = torch.zeros(20, inputs, device="meta", requires_grad=True)
    with counter() as counted:
        rescale_dense(weight).sum().backward()

    assert Layer(20, inputs).rescale_flop == counted.get_total_flops()


def test_flop_of_wide_layers_are_the_papers_arithmetic():
    """
    A dense layer of two blocks takes three quarters of a product and one backward. A 3 x 3 kernel
    takes 20 and 25 products, and a few percent for the sums of taps.
    """
    assert Layer(1024, 1024).rescale_flop == 2 * 1024**3 * 1.75
    products = Layer(512, 512, 3).rescale_flop / (2 * 512**3)
    assert 45 < products < 48.5


def test_flop_of_aol_small_are_as_expected():
    """
    A forward pass takes 0.545 GFLOP per image.
    """
    run = TrainConfig(
        model=ModelConfig(kind="patchwise"),
        data=DataConfig(name="cifar10"),
        loss=LossConfig(offset=1.0, temperature=1.0),
        epochs=10,
        eval_every=10,
    )
    without_rescaling = 50_000 * (3 * 10 + 1 / 5) * 0.545e9
    naive_rescaling = 10 * 200 * 205e9

    found = training_flop(run)
    assert without_rescaling < found < without_rescaling + naive_rescaling


def test_counting_needs_no_torch():
    code = "import sys, aol.models.flops; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert algorithms.NARROW <= algorithms.TOOM_COOK
