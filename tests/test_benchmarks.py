import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from aol.config import ModelConfig
from aol.layers import MaxMin
from aol.loss import offset_cross_entropy
from aol.models import architecture, build_model
from benchmarks import contestants, cpu, memory, plain
from tests.golden_recipe import (
    drawn_batch,
    drawn_parameters,
    golden,
    images_from_tf,
    load_parameters,
    text,
    weight_from_tf,
    weight_to_tf,
    worst,
)

RESCALE = golden("rescale")
CASES = sorted(name.removesuffix("_K") for name in RESCALE.files if name.endswith("_K"))


@pytest.mark.parametrize("name", CASES)
def test_the_plain_rescaling_equals_the_authors(name):
    weight = weight_from_tf(RESCALE[f"{name}_K"]).requires_grad_()
    upstream = weight_from_tf(RESCALE[f"{name}_G"])
    rescaled = (plain.rescale_conv if weight.ndim == 4 else plain.rescale_dense)(weight)
    (gradient,) = torch.autograd.grad(rescaled, weight, upstream)

    assert worst(weight_to_tf(rescaled), RESCALE[f"{name}_f64_kernel"]) <= 1e-10
    assert worst(weight_to_tf(gradient), RESCALE[f"{name}_f64_grad"]) <= 1e-10


def test_the_plain_network_equals_the_authors():
    """
    AOL-Conv in float64: scores, and every parameter's gradient by its norm.
    """
    tag, file = "conv16_10", golden("models_float64")
    with torch.device("meta"):
        model = architecture(ModelConfig(kind="conv"), 10)
    shapes = text(file[f"{tag}_kernel_shapes"])
    load_parameters(model, drawn_parameters(shapes, seed=2026), torch.float64)
    network = plain.plain_copy(model)
    images, labels = drawn_batch(seed=7, count=4, classes=10)
    scores = network(images_from_tf(images))
    offset_cross_entropy(
        scores, torch.from_numpy(labels), offset=math.sqrt(2), temperature=1 / 4
    ).mean().backward()

    assert np.abs(scores.detach().numpy() - file[f"{tag}_scores"]).max() <= 1e-12
    norms = [
        (parameter.grad + (1e-3 * parameter.detach() if parameter.ndim > 1 else 0)).norm().item()
        for parameter in network.parameters()
    ]
    assert norms == pytest.approx(file[f"{tag}_grad_norms"], rel=1e-10)


@pytest.mark.parametrize("kind", ["patchwise", "fc", "std"])
def test_the_plain_copy_is_the_same_function(kind):
    model = build_model(ModelConfig(kind=kind, width=1 / 16), 10, torch.Generator().manual_seed(0))
    network = plain.plain_copy(model)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, MaxMin) for layer in network)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert next(model.parameters()).any()


def test_the_bench_prints_and_keeps_a_table_with_its_machine(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "RESULTS", tmp_path)
    monkeypatch.setattr(cpu, "ROWS", [replace(row, rounds=2) for row in cpu.ROWS])
    cpu.main(["conv16", "dense64", "--keep", "here"])

    table = (tmp_path / "here.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert f"torch {torch.__version__}" in table
    assert [line.split(" | ")[0] for line in table.splitlines()[-2:]] == [
        "| rescale, conv 3×3 of 16",
        "| rescale, dense 64",
    ]


def test_contestants_take_the_same_step(monkeypatch):
    """
    From the same weights and images to the same weights.
    """
    models = []

    def recorded(make):
        return lambda *settings: models.append(make(*settings)) or models[-1]

    monkeypatch.setattr(
        contestants, "ModelConfig", lambda kind: ModelConfig(kind=kind, width=1 / 16)
    )
    monkeypatch.setattr(contestants, "build_model", recorded(build_model))
    monkeypatch.setattr(plain, "plain_copy", recorded(plain.plain_copy))
    for contestant in contestants.step("std", 4).values():
        contestant()

    start, theirs, ours = models
    for before, left, right in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
        assert not torch.equal(before, right)
    assert len(start) == len(theirs) == len(ours)


def test_peak_memory_is_that_of_a_process_of_its_own():
    """
    AOL-Conv's weights, momentum and gradients alone are 180 MB; the test's own memory is not in it.
    """
    held = torch.ones(300_000_000, dtype=torch.uint8)

    assert 180 < memory.peak_mb("ours", "conv", 2) < 600
    assert held[0] == 1
