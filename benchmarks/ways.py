"""The networks that are measured on a GPU, and the ways in which each takes its step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from aol.config import ModelConfig, Precision
from aol.training.optimizer import set_training_precision
from benchmarks.contestants import Training, config_of, initial, our_training, plain_training

MODELS = {
    "AOL-Small": ModelConfig(kind="patchwise", size=16),
    "AOL-Medium": ModelConfig(kind="patchwise", size=32),
    "AOL-Large": ModelConfig(kind="patchwise", size=48),
    "AOL-FC": ModelConfig(kind="fc"),
    "AOL-Conv": ModelConfig(kind="conv"),
    "AOL-STD": ModelConfig(kind="std"),
}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
NOISE = 0.3  # of a weight's size, so that no entry of the Gram kernel is zero but for rounding


@dataclass(frozen=True)
class Way:
    """How a step is taken."""

    precision: Precision
    recorded: bool = False
    plain: bool = False

    def __str__(self) -> str:
        if self.plain:
            return f"plain {self.precision}"
        return self.precision + (", graph" if self.recorded else "")

    def training(self, model: nn.Sequential, config: ModelConfig, batch: int) -> "TrainingOn":
        """Makes the training for a device."""
        settings = config_of(config, batch, self.precision)
        if self.plain:
            return lambda device: plain_training(settings, model, device)
        return lambda device: our_training(settings, model, device, recorded=self.recorded)


TrainingOn = Callable[[torch.device], Training]


EAGER = (Way("float32", plain=True), *map(Way, PRECISIONS))


def recorded_ways_of(device: torch.device) -> list[Way]:
    """The recorded ones: there are none but on CUDA."""
    return [Way(each, recorded=True) for each in PRECISIONS] if device.type == "cuda" else []


@dataclass(frozen=True)
class Subject:
    """A network of the paper, where its steps begin, and the device that takes them."""

    name: str
    config: ModelConfig
    model: nn.Sequential
    device: torch.device

    def training(self, way: Way, batch: int) -> Training:
        """Its training in a way, in that way's arithmetic."""
        set_training_precision(way.precision)
        return way.training(self.model, self.config, batch)(self.device)


def start_of(config: ModelConfig) -> nn.Sequential:
    """The initial network with noise: at the start itself gradients take signs of rounding."""
    model = initial(config)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                size = NOISE / weight[0].numel() ** 0.5
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=size)
    return model


def narrowed(config: ModelConfig, width: float) -> ModelConfig:
    """The same network with every width multiplied."""
    return ModelConfig(kind=config.kind, size=config.size, width=width)
