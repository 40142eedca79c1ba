"""The networks measured on a GPU, and the variants of their training step."""

from dataclasses import dataclass

import torch
from torch import nn

from aol.config import ModelConfig, Precision
from aol.training.optimizer import set_training_precision
from benchmarks.implementations import (
    Training,
    initial_model,
    our_training,
    plain_training,
    train_config,
)

MODELS = {
    "AOL-Small": ModelConfig(kind="patchwise", size=16),
    "AOL-Medium": ModelConfig(kind="patchwise", size=32),
    "AOL-Large": ModelConfig(kind="patchwise", size=48),
    "AOL-FC": ModelConfig(kind="fc"),
    "AOL-Conv": ModelConfig(kind="conv"),
    "AOL-STD": ModelConfig(kind="std"),
}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
NOISE = 0.3  # relative to a weight's size; without it some Gram entries are mere rounding


@dataclass(frozen=True)
class Variant:
    """A variant of the training step."""

    precision: Precision
    recorded: bool = False
    plain: bool = False

    def __str__(self) -> str:
        if self.plain:
            return f"plain {self.precision}"
        return self.precision + (", graph" if self.recorded else "")

    def training(self, network: "Network", batch: int) -> Training:
        """Return the training of a network on its device."""
        config = train_config(network.config, batch, self.precision)
        if self.plain:
            return plain_training(config, network.model, network.device)
        return our_training(config, network.model, network.device, recorded=self.recorded)


@dataclass(frozen=True)
class Network:
    """A network of the paper with its first weights, and the device that trains it."""

    name: str
    config: ModelConfig
    model: nn.Sequential
    device: torch.device

    def training(self, variant: Variant, batch: int) -> Training:
        """Return its training in a variant, after a switch to that variant's precision."""
        set_training_precision(variant.precision)
        return variant.training(self, batch)


EAGER_VARIANTS = (Variant("float32", plain=True), *map(Variant, PRECISIONS))


def recorded_variants(device: torch.device) -> list[Variant]:
    """Return the recorded variants, which only exist on CUDA."""
    return [Variant(each, recorded=True) for each in PRECISIONS] if device.type == "cuda" else []


def noisy_model(config: ModelConfig) -> nn.Sequential:
    """Return the initial network with noise; without it gradients have the signs of rounding."""
    model = initial_model(config)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                size = NOISE / weight[0].numel() ** 0.5
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=size)
    return model


def scale_width(config: ModelConfig, width: float) -> ModelConfig:
    """Return the same network with every width multiplied."""
    return ModelConfig(kind=config.kind, size=config.size, width=width)
