"""
Attacks on a network trained here that do not use its certificates. They flip images without a
certificate, but never one within its certified radius.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from aol.certification.certificate import RADII
from aol.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from aol.layers.modules import in_float64
from aol.training.metrics import margins
from aol.training.trainer import Trainer

CONFIG = TrainConfig(
    model=ModelConfig(kind="patchwise", width=1 / 16),
    data=DataConfig(name="digits", train_limit=600, test_limit=30, augment=False),
    loss=LossConfig(offset=math.sqrt(2), temperature=1 / 4),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    epochs=3,
    batch_size=20,
)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


class Target:
    """
    A network in float64 with images that it classifies as labelled, and their certified radii.
    """

    def __init__(self, model, pixels, labels, margins):
        right = margins > 0
        self.model = in_float64(model)
        self.images = pixels[right].double() / 255
        self.labels = labels[right]
        self.radii = margins[right].double() / math.sqrt(2)

    def flipped(self, change):
        return self.model(self.images + change).argmax(1) != self.labels


@pytest.fixture(scope="module")
def trainer(data_root):
    return Trainer(CONFIG, data_root=data_root, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def untrained(trainer):
    """
    Return noise images with their predicted class. The layers are isometries, so certificates are
    nearly tight.
    """
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, trainer.test.pixels.shape, generator=noise)
    with torch.no_grad():
        scores = in_float64(trainer.model)(pixels.double() / 255)
    labels = scores.argmax(1)
    return Target(trainer.model, pixels, labels, margins(scores, labels))


@pytest.fixture(scope="module")
def trained(trainer, untrained):
    list(trainer.epochs())
    return Target(trainer.model, trainer.test.pixels, trainer.test.labels, trainer.margins())


@pytest.fixture(params=["untrained", "trained"])
def target(request):
    return request.getfixturevalue(request.param)


def length(change):
    return change.flatten(1).norm(dim=1)


def within(change, radius):
    """
    Return the change of each image, shortened to the radius if it is longer.
    """
    factor = (radius / length(change).clamp(min=1e-12)).clamp(max=1)
    return change * factor[:, None, None, None]


def pgd(target, radius, *, steps=20, restarts=1):
    """
    Return a mask of the images that projected gradient descent on the cross-entropy flips within
    `radius`.
    """
    generator = torch.Generator().manual_seed(0)
    radius = torch.as_tensor(radius, dtype=torch.float64).expand(len(target.labels))
    step = 2.5 * radius / steps
    flipped = torch.zeros(len(target.labels), dtype=torch.bool)
    for _ in range(restarts):
        noise = torch.randn(target.images.shape, generator=generator, dtype=torch.float64)
        change = within(noise, radius / 2)
        for _ in range(steps):
            change.requires_grad_()
            loss = F.cross_entropy(
                target.model(target.images + change) * 20, target.labels, reduction="sum"
            )
            (up,) = torch.autograd.grad(loss, change)
            up = up / length(up).clamp(min=1e-300)[:, None, None, None]
            change = within(change.detach() + step[:, None, None, None] * up, radius)
            flipped |= target.flipped(change)
    return flipped


def carlini_wagner(target, *, steps=60, rounds=3):
    """
    Return the length of the shortest change found that flips each image, infinite if none does.

    It is Adam on |change|^2 + c * max(margin, 0) with a larger c in each round, without the box of
    pixel values, which a certificate ignores, too.
    """
    shortest = torch.full((len(target.labels),), math.inf, dtype=torch.float64)
    others = F.one_hot(target.labels, 10).bool()
    for c in 10.0 ** torch.arange(rounds):
        change = torch.full_like(target.images, 1e-3).requires_grad_()
        adam = torch.optim.Adam([change], lr=0.01)
        for _ in range(steps):
            scores = target.model(target.images + change)
            best = scores.masked_fill(others, -math.inf).amax(1)
            margin = scores.gather(1, target.labels[:, None])[:, 0] - best
            size = length(change.detach())
            shortest = torch.where((margin < 0) & (size < shortest), size, shortest)
            loss = change.square().sum() + c * margin.clamp(min=-1e-3).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return shortest


def test_the_networks_have_certified_and_uncertified_images(trained, untrained):
    assert len(untrained.labels) == 30
    assert len(trained.labels) > 24
    for radius in RADII.values():
        assert (trained.radii > radius).any()
        assert (trained.radii < radius).any()


@pytest.mark.parametrize("radius", RADII.values(), ids=RADII)
def test_projected_gradient_descent_flips_no_certified_image(target, radius):
    flipped = pgd(target, radius)

    assert not flipped[target.radii > radius].any()


def test_projected_gradient_descent_does_flip_uncertified_images(target):
    flipped = pgd(target, 2.0)

    assert flipped.sum() > 3
    assert (target.radii[flipped] < 2).all()


def test_projected_gradient_descent_flips_none_within_its_own_radius(target):
    assert not pgd(target, target.radii * (1 - 1e-9)).any()


def test_an_attack_just_beyond_a_tight_radius_succeeds(untrained):
    assert pgd(untrained, untrained.radii * 1.1).float().mean() > 0.8


def test_the_shortest_flipping_change_is_longer_than_the_certified_radius(trained):
    shortest = carlini_wagner(trained)

    assert shortest.isfinite().float().mean() > 0.9
    assert (shortest > trained.radii).all()


def test_the_shortest_flipping_change_is_hardly_longer_than_a_tight_radius(untrained):
    shortest = carlini_wagner(untrained)

    assert (shortest > untrained.radii).all()
    assert (shortest / untrained.radii).median() < 1.1
