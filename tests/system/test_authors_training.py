"""
Whole trainings of the authors' code on real CIFAR-10, against ours: in float64 step for step, in
float32 as distributions. They need CIFAR-10 in AOL_DATA.
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from scipy import stats

from aol.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from aol.data.datasets import load
from aol.models.architectures import architecture
from aol.training.loss import offset_cross_entropy
from aol.training.metrics import certified, correct
from aol.training.optimizer import make_optimizer, set_learning_rate
from aol.training.step import scale_pixels
from aol.training.trainer import Trainer
from tests.support.golden_recipe import GOLDEN, drawn_parameters, load_parameters, weight_to_tf

ROOT = Path(os.environ.get("AOL_DATA") or "/nowhere")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "cifar10.npz").exists(), reason="no cifar10.npz in AOL_DATA"),
    pytest.mark.usefixtures("one_thread"),
]
THEIRS = json.loads((GOLDEN / "authors_training.json").read_text())
CPU = torch.device("cpu")
CONFIG = TrainConfig(
    model=ModelConfig(kind="patchwise", width=1 / 16),
    data=DataConfig(name="cifar10", train_limit=5_000, test_limit=2_000),
    loss=LossConfig(offset=math.sqrt(2), temperature=1 / 4),
    optimizer=OptimizerConfig(momentum=float(np.float32(0.9))),
    epochs=10,
    batch_size=100,
)
METRICS = ("accuracy", "cra_36", "cra_72", "cra_108")
PAIRS = 11
MARGIN = 1.0  # percentage points


def test_two_hundred_steps_in_float64_are_the_authors():
    """
    Without augmentation, from the same weights and in the same batches.
    """
    theirs = THEIRS["float64_run"]
    model = architecture(CONFIG.model, 10)
    shapes = THEIRS["architecture"]["kernel_shapes_tf"]
    layers = load_parameters(model, drawn_parameters(shapes, seed=2027), torch.float64)
    train, test = load(CONFIG.data, ROOT, CPU)
    pixels, labels = scale_pixels(train.pixels, torch.float64), train.labels.long()
    optimizer = make_optimizer(model, CONFIG)
    batches = np.random.default_rng(11)

    def losses(scores, labels):
        loss = CONFIG.loss
        return offset_cross_entropy(
            scores, labels, offset=loss.offset, temperature=loss.temperature
        )

    for epoch, rate in enumerate(theirs["rates_as_keras_keeps_them"]):
        set_learning_rate(optimizer, rate)
        seen, hits = 0.0, 0
        for batch in torch.from_numpy(batches.permutation(5_000)).split(100):
            scores = model(pixels[batch])
            rows = losses(scores, labels[batch])
            optimizer.zero_grad()
            rows.mean().backward()
            optimizer.step()
            seen += rows.detach().sum().item()
            hits += int(correct(scores.detach(), labels[batch]).sum())
        with torch.no_grad():
            scores = model(scale_pixels(test.pixels, torch.float64))
        found = {
            "train_loss": seen / 5_000,
            "train_accuracy": hits / 5_000,
            "test_loss": losses(scores, test.labels.long()).mean().item(),
            "accuracy": correct(scores, test.labels).double().mean().item(),
            "cra_36": certified(scores, test.labels, 36 / 255).double().mean().item(),
        }
        for name, value in found.items():
            assert value == pytest.approx(theirs["metrics"][name][epoch], abs=1e-12), (epoch, name)

    firsts = theirs["final_kernel_first8_tf_order"]
    for index, layer in enumerate(layers):
        kernel = weight_to_tf(layer.weight)
        assert np.abs(kernel.reshape(-1)[:8] - firsts[index]).max() <= 1e-12
        assert np.linalg.norm(kernel) == pytest.approx(
            theirs["final_kernel_norms"][index], abs=1e-12
        )
        bias = layer.bias.detach().norm().item()
        assert bias == pytest.approx(theirs["final_bias_norms"][index], abs=1e-12)


@pytest.fixture(scope="module")
def ours():
    """
    Accuracy and CRA in percent of all 10,000 test images, of one training per authors' training.
    """
    found = []
    for seed in range(PAIRS):
        config = with_seed(seed)
        run = Trainer(config, data_root=ROOT, device=CPU)
        (*_, last) = run.epochs()
        found.append({name: 100 * last.values()[name] for name in METRICS})
    return found


def with_seed(seed):
    data = replace(CONFIG.data, test_limit=None, shuffle="authors")
    return replace(CONFIG, data=data, seed=seed, eval_every=10)


@pytest.mark.parametrize("metric", METRICS)
def test_float32_trainings_agree_with_the_authors_in_distribution(ours, metric):
    """
    Two one-sided tests at 5 %: the mean is within a point of theirs, if the seeds' spread allows
    that to be shown at all; else it is not shown to be beyond.
    """
    theirs = [100 * run["after_last_epoch_on_10000"][metric] for run in THEIRS["runs"]]
    mine = [run[metric] for run in ours]
    difference = fmean(mine) - fmean(theirs)
    error = math.sqrt(stdev(mine) ** 2 / len(mine) + stdev(theirs) ** 2 / len(theirs))
    quantile = stats.t.ppf(0.95, len(mine) + len(theirs) - 2)

    if quantile * error < MARGIN / 2:
        assert abs(difference) + quantile * error < MARGIN
    assert abs(difference) - quantile * error < MARGIN
