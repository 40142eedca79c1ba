"""A lower bound of a training step's time, from a device's arithmetic and memory rates."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aol.config import ModelConfig, Precision
from aol.models.flops import layers_of, parameters
from aol.training.optimizer import allow_tf32

MATRIX = 8192  # rows and columns
COPIED_BYTES = 2**31
ROUNDS = 10
WEIGHT_BYTES = 4  # master weights are float32 in every precision
OUTPUT_BYTES: dict[Precision, int] = {"float32": 4, "tf32": 4, "bf16": 2}
WEIGHT_PASSES = 8  # forward, backward; gradient written, read; weight, momentum read, written
OUTPUT_PASSES = 4  # of a layer's output and its gradient, each written and read


@dataclass(frozen=True)
class Roofline:
    """Measured limits of a device."""

    flop_per_s: dict[Precision, float]
    bytes_per_s: float

    def step_seconds(self, model: ModelConfig, batch: int, precision: Precision) -> float:
        """Return the time of a step's products or of its memory accesses, whichever is longer."""
        layers = layers_of(model)
        applying = 3 * batch * sum(layer.flop for layer in layers)
        rescaling = sum(layer.rescale_flop for layer in layers)  # never in bf16
        rates = self.flop_per_s
        rescaling_rate = rates["float32" if precision == "float32" else "tf32"]
        computing = applying / rates[precision] + rescaling / rescaling_rate
        outputs = batch * sum(layer.outputs * layer.side**2 for layer in layers)
        moved = WEIGHT_BYTES * WEIGHT_PASSES * parameters(model)
        moved += OUTPUT_BYTES[precision] * OUTPUT_PASSES * outputs
        return max(computing, moved / self.bytes_per_s)


def measure(device: torch.device, size: int = MATRIX, copied_bytes: int = COPIED_BYTES) -> Roofline:
    """Measure a large matrix product in each precision, and a large copy."""
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    flop = 2 * size**3
    seconds: dict[Precision, float] = {}
    for precision in ("float32", "tf32"):
        allow_tf32(precision == "tf32")
        seconds[precision] = seconds_of(lambda: left @ right, device)
    allow_tf32(False)
    halves = left.bfloat16(), right.bfloat16()
    seconds["bf16"] = seconds_of(lambda: halves[0] @ halves[1], device)
    source = torch.empty(copied_bytes // 2, dtype=torch.uint8, device=device)
    target: Tensor = torch.empty_like(source)
    copying = seconds_of(lambda: target.copy_(source), device)
    rates = {precision: flop / took for precision, took in seconds.items()}
    return Roofline(rates, copied_bytes / copying)


def seconds_of(run: Callable[[], Any], device: torch.device, rounds: int = ROUNDS) -> float:
    """Return the mean time of a call, after one call to warm up."""
    run()
    wait(device)
    started = time.perf_counter()
    for _ in range(rounds):
        run()
    wait(device)
    return (time.perf_counter() - started) / rounds


def wait(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
