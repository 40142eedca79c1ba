"""What is compared: by name, functions without arguments that do the same work."""

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
from aol.training.step import GraphedStep, TrainingStep, scale_pixels
from benchmarks import plain

Contestants = dict[str, Callable[[], Any]]
CPU = torch.device("cpu")
EVALUATED = 4  # batches of one evaluation


def rescale(shape: tuple[int, ...]) -> Contestants:
    """Rescaling and its gradient, each in the memory layout that suits it."""
    kernel, upstream = torch.randn(shape) / shape[1], torch.randn(shape)
    if len(shape) == 2:
        plain_way, our_way = plain.rescale_dense, rescale_dense
        return {
            "plain": _both_passes(plain_way, kernel, upstream),
            "ours": _both_passes(our_way, kernel, upstream),
        }
    ours = [part.contiguous(memory_format=torch.channels_last) for part in (kernel, upstream)]
    runs = {
        "plain": _both_passes(plain.rescale_conv, kernel, upstream),
        "ours": _both_passes(rescale_conv, *ours),
    }
    if (reparametrizer := _peer()) is not None:
        peer = reparametrizer(min(shape[:2]), groups=1, niter=1)
        runs["orthogonium"] = _both_passes(peer, kernel, upstream)
    return runs


def _peer() -> Callable[..., Callable[[Tensor], Tensor]] | None:
    """The rescaling of orthogonium, where someone has installed it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a SyntaxWarning of its source is not ours to mend
        try:
            from orthogonium.layers.conv.AOL.aol import MultiStepAOLReparametrizer
        except ImportError:
            return None
    made: Callable[..., Callable[[Tensor], Tensor]] = MultiStepAOLReparametrizer
    return made


def _both_passes(
    function: Callable[[Tensor], Tensor], weight: Tensor, upstream: Tensor
) -> Callable[[], Any]:
    def run() -> None:
        raw = weight.detach().requires_grad_()
        torch.autograd.grad(function(raw), raw, upstream)

    return run


def config_of(model: ModelConfig, batch: int, precision: Precision = "float32") -> TrainConfig:
    """The paper's settings for one network, without augmentation."""
    return TrainConfig(
        model=model,
        data=DataConfig(name="cifar10", augment=False),
        loss=LossConfig(offset=2**0.5, temperature=0.25),
        batch_size=batch,
        precision=precision,
    )


def images_of(batch: int) -> Images:
    """Random pixels and labels, the same for every contestant."""
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (batch, 3, 32, 32), generator=noise, dtype=torch.uint8)
    return Images(pixels, torch.randint(10, (batch,), generator=noise))


@dataclass(frozen=True)
class Training:
    """A step on one batch, to be called without arguments, and the network that it trains."""

    model: nn.Sequential
    step: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        """The sum of the batch's losses, valid until the next call."""
        return self.step()


def our_training(
    config: TrainConfig, model: nn.Sequential, device: torch.device = CPU, *, recorded: bool = False
) -> Training:
    """Our training step on one batch; `recorded` as a CUDA graph."""
    model = deepcopy(model).to(device)
    images = images_of(config.batch_size)
    noise = torch.Generator(device)
    step = TrainingStep(
        config,
        model=model,
        optimizer=make_optimizer(model, config),
        images=Images(images.pixels.to(device), images.labels.to(device)),
        noise=noise,
    )
    order = torch.arange(config.batch_size, device=device)
    run = GraphedStep(step, noise) if recorded else step
    return Training(model, lambda: run(order)[0])


def plain_training(
    config: TrainConfig,
    model: nn.Sequential,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> Training:
    """The same step as a straightforward port takes it, with torch's default SGD."""
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
    images, loss = images_of(config.batch_size), config.loss
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


def initial(config: ModelConfig) -> nn.Sequential:
    """The network as training begins with it."""
    return build_model(config, 10, torch.Generator().manual_seed(0))


def step(model_config: ModelConfig, batch: int) -> Contestants:
    """A whole training step."""
    config = config_of(model_config, batch)
    model = initial(model_config)
    return {"plain": plain_training(config, model), "ours": our_training(config, model)}


def evaluation(model_config: ModelConfig, batch: int) -> Contestants:
    """Scores of a few batches; the plain port rescales for each of them."""
    ours = initial(model_config)
    theirs = plain.plain_copy(ours)
    pixels = images_of(batch).pixels

    @torch.no_grad()
    def kept() -> list[Tensor]:
        with rescaled_once(ours):
            return [ours(scale_pixels(pixels)) for _ in range(EVALUATED)]

    @torch.no_grad()
    def rescaled_again() -> list[Tensor]:
        return [theirs(pixels.float() / 255) for _ in range(EVALUATED)]

    return {"plain": rescaled_again, "ours": kept}


def augmentation() -> Contestants:
    """The paper's augmentation, and torchvision's nearest to it for each image by itself."""
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
