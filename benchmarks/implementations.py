"""The implementations to compare: by name, functions without arguments that do the same work."""

import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aol.config import DataConfig, LossConfig, ModelConfig, Precision, TrainConfig
from aol.data.augment import augment
from aol.data.datasets import Images
from aol.layers.modules import rescaled_once
from aol.models.architectures import build_model
from aol.ops.rescale import rescale_conv, rescale_dense
from aol.training.loss import offset_cross_entropy
from aol.training.optimizer import make_optimizer
from aol.training.step import Replay, TrainingStep, scaled
from benchmarks import plain

Implementations = dict[str, Callable[[], Any]]
CPU = torch.device("cpu")
EVALUATION_BATCHES = 4


def rescale(shape: tuple[int, ...]) -> Implementations:
    """Return rescalings with their gradient, each with its preferred memory layout."""
    kernel, upstream = torch.randn(shape) / shape[1], torch.randn(shape)
    if len(shape) == 2:
        return {
            "plain": _both_passes(plain.rescale_dense, kernel, upstream),
            "ours": _both_passes(rescale_dense, kernel, upstream),
        }
    ours = [part.contiguous(memory_format=torch.channels_last) for part in (kernel, upstream)]
    runs = {
        "plain": _both_passes(plain.rescale_conv, kernel, upstream),
        "ours": _both_passes(rescale_conv, *ours),
    }
    if (reparametrizer := _orthogonium()) is not None:
        rescaling = reparametrizer(min(shape[:2]), groups=1, niter=1)
        runs["orthogonium"] = _both_passes(rescaling, kernel, upstream)
    return runs


def _orthogonium() -> Callable[..., Callable[[Tensor], Tensor]] | None:
    """Return the rescaling of orthogonium if it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has a SyntaxWarning
        try:
            from orthogonium.layers.conv.AOL.aol import MultiStepAOLReparametrizer
        except ImportError:
            return None
    reparametrizer: Callable[..., Callable[[Tensor], Tensor]] = MultiStepAOLReparametrizer
    return reparametrizer


def _both_passes(
    function: Callable[[Tensor], Tensor], weight: Tensor, upstream: Tensor
) -> Callable[[], Any]:
    def run() -> None:
        raw = weight.detach().requires_grad_()
        torch.autograd.grad(function(raw), raw, upstream)

    return run


def train_config(model: ModelConfig, batch: int, precision: Precision = "float32") -> TrainConfig:
    """Return the paper's settings for a network, without augmentation."""
    return TrainConfig(
        model=model,
        data=DataConfig(name="cifar10", augment=False),
        loss=LossConfig(offset=2**0.5, temperature=0.25),
        batch_size=batch,
        precision=precision,
    )


def random_batch(batch: int) -> Images:
    """Return random images and labels, the same for every implementation."""
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, 3, 32, 32), generator=noise, dtype=torch.uint8)
    return Images(pixels, torch.randint(10, (batch,), generator=noise))


@dataclass(frozen=True)
class Training:
    """A training step on a fixed batch, and the network that it trains."""

    model: nn.Sequential
    step: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        """Take a step; return the sum of the losses, valid until the next call."""
        return self.step()


def our_training(
    config: TrainConfig, model: nn.Sequential, device: torch.device = CPU, *, recorded: bool = False
) -> Training:
    """Return our training step on one batch, as a CUDA graph if `recorded`."""
    model = deepcopy(model).to(device)
    images = random_batch(config.batch_size)
    noise = torch.Generator(device)
    step = TrainingStep(
        config,
        model=model,
        optimizer=make_optimizer(model, config),
        images=Images(images.pixels.to(device), images.labels.to(device)),
        noise=noise,
    )
    order = torch.arange(config.batch_size, device=device)
    run = Replay(step, noise) if recorded else step
    return Training(model, lambda: run(order)[0])


def plain_training(
    config: TrainConfig,
    model: nn.Sequential,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Training:
    """Return the training step of the plain port, with torch's default SGD."""
    network = plain.plain_copy(model).to(device, dtype)
    groups: list[dict[str, Any]] = [
        {"params": [weight for weight in network.parameters() if weight.ndim > 1]},
        {"params": [bias for bias in network.parameters() if bias.ndim == 1]},
    ]
    groups[0]["weight_decay"] = 2 * config.optimizer.l2
    optimizer = torch.optim.SGD(
        groups,
        lr=config.optimizer.learning_rate,
        momentum=config.optimizer.momentum,
        nesterov=config.optimizer.nesterov,
    )
    images, loss = random_batch(config.batch_size), config.loss
    inputs, labels = images.pixels.to(device, dtype) / 255, images.labels.to(device)

    def run() -> Tensor:
        rows = offset_cross_entropy(
            network(inputs), labels, offset=loss.offset, temperature=loss.temperature
        )
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()
        return rows.detach().sum()

    return Training(network, run)


def initial_model(config: ModelConfig) -> nn.Sequential:
    """Return the network with its initial weights."""
    return build_model(config, 10, torch.Generator().manual_seed(0))


def step(model_config: ModelConfig, batch: int) -> Implementations:
    """Return whole training steps."""
    config = train_config(model_config, batch)
    model = initial_model(model_config)
    return {"plain": plain_training(config, model), "ours": our_training(config, model)}


def evaluation(model_config: ModelConfig, batch: int) -> Implementations:
    """Return evaluations of a few batches; only the plain port rescales for each of them."""
    ours = initial_model(model_config)
    port = plain.plain_copy(ours)
    pixels = random_batch(batch).pixels

    @torch.no_grad()
    def rescale_once() -> list[Tensor]:
        with rescaled_once(ours):
            return [ours(scaled(pixels)) for _ in range(EVALUATION_BATCHES)]

    @torch.no_grad()
    def rescale_each_time() -> list[Tensor]:
        return [port(pixels.float() / 255) for _ in range(EVALUATION_BATCHES)]

    return {"plain": rescale_each_time, "ours": rescale_once}


def augmentation() -> Implementations:
    """Return the paper's augmentation and a similar one of torchvision, image by image."""
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    each = v2.Compose(
        [
            v2.ColorJitter(brightness=0.1, contrast=(0.5, 2), saturation=(0.3, 2), hue=0.02),
            v2.RandomRotation(5, interpolation=bilinear),
            v2.RandomAffine(0, translate=(0.1, 0.1), interpolation=bilinear),
            v2.RandomHorizontalFlip(),
        ]
    )
    images = torch.rand(250, 3, 32, 32)
    noise = torch.Generator().manual_seed(0)
    return {
        "plain": lambda: torch.stack([each(image) for image in images]),
        "ours": lambda: augment(images, noise),
    }
