"""
The attack beside the certificate: what it finds, and what a run records of it.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from aol.config import AttackConfig
from aol.training.attack import projected_gradient_descent
from aol.training.result import evaluate_result
from aol.training.trainer import Trainer
from tests.aol.training.test_trainer import CONFIG

CPU = torch.device("cpu")


@pytest.fixture
def linear():
    """
    Return a linear network whose scores for an image x of two pixels are x and the flipped x.
    """
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
    return network


@pytest.mark.parametrize("factor", [0.999, 1.001])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_linear_network_is_flipped_just_beyond_its_distance_to_the_boundary(
    linear, factor, steps
):
    images = torch.tensor([[0.6, 0.4], [0.4, 0.8]], dtype=torch.float64).reshape(2, 1, 1, 2)
    labels = torch.tensor([0, 1])
    distances = [0.2 / math.sqrt(2), 0.4 / math.sqrt(2)]
    for index, distance in enumerate(distances):
        one = slice(index, index + 1)
        robust = projected_gradient_descent(
            linear, images[one], labels[one], radius=factor * distance, steps=steps
        )
        assert robust.tolist() == [factor < 1]


def test_the_changed_image_has_pixels_between_0_and_1(linear):
    """
    The boundary is reached only through a pixel above 1.
    """
    image = torch.tensor([[1.0, 0.2]], dtype=torch.float64).reshape(1, 1, 1, 2)
    seen = []
    linear.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    robust = projected_gradient_descent(linear, 1 - image, torch.tensor([1]), radius=0.5, steps=9)

    assert robust.tolist() == [True]
    assert all(images.min() >= 0 and images.max() <= 1 for images in seen)


def test_an_image_that_is_wrong_already_is_not_robust(linear):
    image = torch.tensor([[0.2, 0.4]], dtype=torch.float64).reshape(1, 1, 1, 2)

    assert not projected_gradient_descent(linear, image, torch.tensor([0]), radius=1e-6, steps=1)


@pytest.mark.parametrize("wrong", [{"radius": 0}, {"radius": math.nan}, {"radius": 1, "steps": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        AttackConfig(**wrong)


def test_a_run_records_an_accuracy_between_the_certified_and_the_clean_one(data_root, two_layers):
    radius = 36 / 255
    config = replace(CONFIG, attack=AttackConfig(radius=radius, steps=10, images=40))
    trainer = Trainer(config, data_root=data_root, device=CPU)
    list(trainer.epochs())
    found = evaluate_result(trainer).certificate["attack"]
    margins = trainer.margins()[: found["images"]]
    certified = float((margins > math.sqrt(2) * radius).double().mean())

    assert found["images"] == 40
    assert found["accuracy"] == pytest.approx(float((margins > 0).double().mean()))
    assert certified <= found["robust"] <= found["accuracy"]


def test_a_strong_attack_leaves_no_image_right(data_root, two_layers):
    config = replace(CONFIG, attack=AttackConfig(radius=10, steps=20, images=40))
    trainer = Trainer(config, data_root=data_root, device=CPU)
    list(trainer.epochs())
    found = trainer.measure_attack()

    assert found["accuracy"] > 0
    assert found["robust"] == 0


def test_without_an_attack_nothing_is_recorded(data_root, two_layers):
    trainer = Trainer(CONFIG, data_root=data_root, device=CPU)

    assert "attack" not in evaluate_result(trainer).certificate
