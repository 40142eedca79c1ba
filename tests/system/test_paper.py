"""The paper's facts, each as a number that the code must reproduce."""

import math

import numpy as np
import pytest

from aol.catalog import DATASETS
from aol.certification.certificate import RADII
from aol.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from aol.data import augment
from aol.layers.modules import AOLConv2d, AOLLinear, ConcatenationPooling, MaxMin
from aol.layers.plain import FirstChannels
from aol.models.architectures import architecture
from aol.ops.rescale import EPS
from aol.training.optimizer import make_optimizer

ROOT_2 = math.sqrt(2)
# Run ID: kind, size parameter, dataset, loss offset, temperature, digest of the settings.
# A digest names finished runs on disk: where one changes, every stored result is orphaned.
RUNS = {
    0: ("patchwise", 16, "cifar10", ROOT_2, 1 / 4, "eac6a237"),
    1: ("patchwise", 32, "cifar10", ROOT_2, 1 / 4, "2fbb9b43"),
    2: ("patchwise", 48, "cifar10", ROOT_2, 1 / 4, "08c95f0b"),
    10: ("fc", 16, "cifar10", ROOT_2, 1 / 4, "720d12cf"),
    11: ("conv", 16, "cifar10", ROOT_2, 1 / 4, "4d7bebce"),
    12: ("std", 16, "cifar10", ROOT_2, 1 / 4, "2dc6c7cd"),
    20: ("patchwise", 16, "cifar10", ROOT_2 / 16, 1 / 64, "c42534a4"),
    21: ("patchwise", 16, "cifar10", ROOT_2 / 4, 1 / 16, "dd907396"),
    22: ("patchwise", 16, "cifar10", ROOT_2, 1 / 4, "eac6a237"),
    23: ("patchwise", 16, "cifar10", 4 * ROOT_2, 1.0, "ba703ebe"),
    24: ("patchwise", 16, "cifar10", 16 * ROOT_2, 4.0, "c2b4c0a1"),
    30: ("patchwise", 16, "cifar100", ROOT_2, 1 / 4, "c4e3dfe8"),
    31: ("patchwise", 32, "cifar100", ROOT_2, 1 / 4, "cb411ff2"),
    32: ("patchwise", 48, "cifar100", ROOT_2, 1 / 4, "515c5e94"),
}


def paper_run(run):
    kind, size, dataset, offset, temperature, _ = RUNS[run]
    return TrainConfig(
        model=ModelConfig(kind=kind, size=size),
        data=DataConfig(name=dataset),
        loss=LossConfig(offset=offset, temperature=temperature),
        precision="tf32",
        eval_every=10,
    )


def network(run):
    config = paper_run(run)
    return architecture(config.model, config.data.classes)


def count(model, kind):
    return sum(isinstance(layer, kind) for layer in model)


def kernels(model):
    """
    (outputs, inputs, kernel size) of the convolutions.
    """
    shapes = [layer.weight.shape for layer in model if isinstance(layer, AOLConv2d)]
    assert all(rows == columns for _, _, rows, columns in shapes)
    return [tuple(shape[:3]) for shape in shapes]


@pytest.mark.parametrize("run", RUNS)
def test_digests_of_the_papers_runs_never_change(run):
    assert paper_run(run).digest() == RUNS[run][-1]


def test_only_runs_0_and_22_share_their_settings():
    digests = [paper_run(run).digest() for run in RUNS]

    assert paper_run(0) == paper_run(22)
    assert len(set(digests)) == len(RUNS) - 1


@pytest.mark.parametrize(
    ("runs", "millions", "parameters"),
    [
        ((0, 20, 21, 22, 23, 24, 30), 18.72, 18_724_480),
        ((1, 31), 62.78, 62_779_008),
        ((2, 32), 136.19, 136_193_664),
        ((10,), 130.06, 130_056_192),
        ((11,), 15.18, 15_182_672),
        ((12,), 16.42, 16_419_776),
    ],
)
def test_parameter_counts(runs, millions, parameters):
    """
    The models for 100 classes have the parameters of those for 10.
    """
    for run in runs:
        found = sum(parameter.numel() for parameter in network(run).parameters())
        assert found == parameters
        assert round(found / 1e6, 2) == millions


@pytest.mark.parametrize(("run", "features"), [(0, 1024), (1, 2048), (2, 3072), (32, 3072)])
def test_patchwise_is_14_convolutions_and_14_dense_layers(run, features):
    model = network(run)
    dense = [layer for layer in model if isinstance(layer, AOLLinear)]

    assert (model[0].rows, model[0].columns) == (4, 4)
    assert kernels(model) == [(192, 48, 1), *[(192, 192, 3)] * 12, (192, 192, 1)]
    assert [tuple(layer.weight.shape) for layer in dense] == [(features, features)] * 14
    assert count(model, MaxMin) == 13 + 13
    assert isinstance(model[-2], AOLLinear)


def test_fully_connected_has_8_dense_layers():
    model = network(10)
    shapes = [tuple(layer.weight.shape) for layer in model if isinstance(layer, AOLLinear)]

    assert shapes == [(4096, 3072), *[(4096, 4096)] * 7]
    assert count(model, MaxMin) == 7
    assert count(model, AOLConv2d) == 0


def test_conv_has_five_blocks_of_five_layers():
    model = network(11)

    def block(inputs, width, size):
        return [(width, inputs, 1), *[(width, width, size)] * 4]

    assert kernels(model) == [
        *block(12, 16, 3),
        *block(64, 64, 3),
        *block(256, 256, 3),
        *block(1024, 1024, 1),
        (1024, 1024, 1),
        *block(1024, 1024, 1),
        (1024, 1024, 1),
    ]
    assert count(model, MaxMin) == 25
    assert count(model, ConcatenationPooling) == 5
    assert [layer.channels for layer in model if isinstance(layer, FirstChannels)] == [256, 10]


def test_conv_has_no_activation_around_its_cut():
    model = list(network(11))
    cut = next(index for index, layer in enumerate(model) if isinstance(layer, FirstChannels))
    kinds = [type(layer) for layer in model[cut - 2 : cut + 3]]

    assert kinds == [MaxMin, AOLConv2d, FirstChannels, ConcatenationPooling, AOLConv2d]


def test_standard_network_doubles_its_width_five_times():
    model = network(12)
    expected = [(32, 3, 1)]
    for width in (32, 64, 128, 256, 512):
        expected += [*[(width, width, 3)] * 4, (2 * width, 4 * width, 1)]

    assert kernels(model) == [*expected, (1024, 1024, 1)]
    assert count(model, MaxMin) == 1 + 20
    kinds = [type(layer) for layer in model]
    for index, kind in enumerate(kinds):
        if kind is ConcatenationPooling:
            assert kinds[index + 1] is kinds[index + 2] is AOLConv2d  # no activation between


def test_sizes_of_fc_and_std_ignore_the_size_parameter():
    for kind in ("fc", "std"):
        models = [architecture(ModelConfig(kind=kind, size=size), 10) for size in (16, 48)]
        shapes = [[tuple(p.shape) for p in model.parameters()] for model in models]
        assert shapes[0] == shapes[1]


def test_learning_rate_drops_before_epochs_900_990_and_999():
    config = paper_run(0)
    rates = [config.learning_rate(epoch) for epoch in range(config.epochs)]
    drops = [epoch for epoch in range(1, 1000) if rates[epoch] != rates[epoch - 1]]

    assert len(rates) == 1000
    assert drops == [900, 990, 999]
    assert [rates[e] for e in (0, 900, 990, 999)] == pytest.approx([1e-3, 1e-4, 1e-5, 1e-6])


def test_optimiser_is_nesterov_sgd_that_decays_kernels_only():
    """
    Keras's l2(5e-4) adds 5e-4 * sum(w**2) to the loss: torch's weight_decay of 1e-3.
    """
    model = network(0)
    kernels_group, biases_group = make_optimizer(model, paper_run(0)).param_groups

    assert kernels_group["weight_decay"] == 1e-3
    assert biases_group["weight_decay"] == 0
    assert all(parameter.ndim >= 2 for parameter in kernels_group["params"])
    assert all(parameter.ndim == 1 for parameter in biases_group["params"])
    assert len(kernels_group["params"]) == len(biases_group["params"]) == 28
    for group in (kernels_group, biases_group):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (1e-3, 0.9, True)
        assert group["dampening"] == 0
        assert not group["maximize"]


def test_an_epoch_is_200_batches_of_250():
    for run in RUNS:
        config = paper_run(run)
        assert config.batch_size == 250
        assert config.data.train_images / config.batch_size == 200
        assert config.data.augment


def test_datasets():
    cifar10, cifar100 = DATASETS["cifar10"], DATASETS["cifar100"]

    assert (len(cifar10.classes), len(cifar100.classes)) == (10, 100)
    assert cifar10.train_images == cifar100.train_images == 50_000
    assert cifar10.fingerprints == {"train": "9d0c0911520be369", "test": "de520a74c6be9798"}
    assert cifar100.fingerprints == {"train": "6fd56549bf1b631f", "test": "90b88e951e4c2eaa"}


def test_constants_of_the_augmentation_and_the_metrics():
    assert (augment.HUE, augment.BRIGHTNESS) == (0.02, 0.1)
    assert (augment.SATURATION, augment.CONTRAST) == ((0.3, 2.0), (0.5, 2.0))
    assert math.degrees(augment.ROTATION) == pytest.approx(5)
    assert augment.TRANSLATION == 0.1
    assert np.array(list(RADII.values())) * 255 == pytest.approx([36, 72, 108, 255])
    assert EPS == 1e-6
