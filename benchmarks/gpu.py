"""The training step on a GPU, way by way: `python -m benchmarks.gpu`. Needs torch alone.

For every network of the paper: the plain port in float32, and our step in float32, TF32 and bf16,
step by step and recorded as a graph. Each way is checked before it is timed: one step's change of
the weights against a float64 step of the plain port on the CPU, and a recording against the same
steps unrecorded. Then all ways run in turn, round after round, and medians are quoted. The roofline
is measured in the same call. Prints a table in markdown and keeps it in benchmarks/results/.
"""

import argparse
import gc
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from aol.config import ModelConfig, Precision
from aol.environment import environment
from aol.train import train_in
from benchmarks import roofline
from benchmarks.contestants import Training, config_of, initial, our_training, plain_training
from benchmarks.machine import table

MODELS = {
    "AOL-Small": ModelConfig(kind="patchwise", size=16),
    "AOL-Medium": ModelConfig(kind="patchwise", size=32),
    "AOL-Large": ModelConfig(kind="patchwise", size=48),
    "AOL-FC": ModelConfig(kind="fc"),
    "AOL-Conv": ModelConfig(kind="conv"),
    "AOL-STD": ModelConfig(kind="std"),
}
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bf16")
TOLERANCE: dict[Precision, float] = {"float32": 1e-2, "tf32": 5e-2, "bf16": 3e-1}
GRAPH_TOLERANCE = 1e-2  # after several steps, atomics and kernel choice included
GRAPH_STEPS = 6  # the first ones are not recorded yet
CHECKED_BATCH = 8  # float64 on the CPU is slow
TRAINING_IMAGES = 50_000
ROUND_S = 0.1
NOISE = 0.3  # of a weight's size, so that no entry of the Gram kernel is zero but for rounding
RESULTS = Path(__file__).parent / "results"
HEADER = ["network", "way", "error", "ms a step", "images/s", "of plain", "of roofline"]


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


def ways(device: torch.device) -> list[Way]:
    """All ways that the device has."""
    found = [Way("float32", plain=True), *map(Way, PRECISIONS)]
    if device.type == "cuda":
        found += [Way(precision, recorded=True) for precision in PRECISIONS]
    return found


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


def change(training: Training, model: nn.Sequential, steps: int = 1) -> torch.Tensor:
    """How the weights differ from `model`'s after some steps, flat, in float64 on the CPU."""
    for _ in range(steps):
        training()
    pairs = zip(training.model.parameters(), model.parameters(), strict=True)
    parts = [after.detach().cpu().double() - before.detach().double() for after, before in pairs]
    return torch.cat([part.flatten() for part in parts])


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Their difference relative to `expected`, in L2."""
    return float((found - expected).norm() / expected.norm())


def errors(
    config: ModelConfig, model: nn.Sequential, device: torch.device
) -> dict[Way, tuple[float, bool]]:
    """Each way's error, and whether it is within its tolerance."""
    settings = config_of(config, CHECKED_BATCH)
    exact = change(plain_training(settings, model, dtype=torch.float64), model)
    found = {}
    for way in ways(device):
        train_in(way.precision)
        make = way.training(model, config, CHECKED_BATCH)
        if way.recorded:
            unrecorded = Way(way.precision).training(model, config, CHECKED_BATCH)
            expected = change(unrecorded(device), model, GRAPH_STEPS)
            error = distance(change(make(device), model, GRAPH_STEPS), expected)
            found[way] = error, error <= GRAPH_TOLERANCE
        else:
            error = distance(change(make(device), model), exact)
            found[way] = error, error <= TOLERANCE[way.precision]
    return found


def seconds(
    config: ModelConfig, model: nn.Sequential, device: torch.device, batch: int, rounds: int
) -> dict[Way, float]:
    """The median time of a step each way, all in turn."""
    runs = {way: way.training(model, config, batch)(device) for way in ways(device)}
    counts, times = {}, {way: list[float]() for way in runs}
    for way, run in runs.items():
        train_in(way.precision)
        for _ in range(GRAPH_STEPS):
            run()
        counts[way] = max(1, round(ROUND_S / roofline.seconds_of(run, device, 3)))
    for _ in range(rounds):
        for way, run in runs.items():
            train_in(way.precision)
            times[way].append(roofline.seconds_of(run, device, counts[way]))
    return {way: median(values) for way, values in times.items()}


def lines_of(
    name: str,
    config: ModelConfig,
    device: torch.device,
    limits: roofline.Roofline,
    options: "argparse.Namespace",
) -> tuple[list[list[str]], dict[str, float]]:
    """The table's lines of one network, and its seconds per epoch by way."""
    model = start_of(config)
    checked = errors(config, model, device)
    took = seconds(config, model, device, options.batch, options.rounds)
    plain = next(seconds for way, seconds in took.items() if way.plain)
    lines = []
    for way, step in took.items():
        error, right = checked[way]
        least = limits.step_seconds(config, options.batch, way.precision)
        lines.append(
            [
                name,
                str(way),
                f"{error:.1e}" + ("" if right else " (too large)"),
                f"{1e3 * step:.2f}",
                f"{options.batch / step:,.0f}",
                f"{plain / step:.1f}×",
                f"{100 * least / step:.0f} %",
            ]
        )
    steps = TRAINING_IMAGES / options.batch
    return lines, {str(way): steps * step for way, step in took.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; 1 if a way was too far from float64."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.networks) - set(MODELS)):
        parser.error(f"unknown: {', '.join(unknown)}; the networks are {', '.join(MODELS)}")
    device = torch.device(options.device)
    limits = roofline.measure(device, options.matrix, options.copied_bytes)
    lines: list[list[str]] = []
    rates: dict[str, dict[str, float]] = {}
    for name in options.networks or MODELS:
        config = _narrowed(MODELS[name], options.width)
        try:
            found, rates[name] = lines_of(name, config, device, limits, options)
        except Exception:  # the other networks are worth their time all the same
            traceback.print_exc()
            found = [[name, "failed", *["–"] * (len(HEADER) - 2)]]
        lines += found
        for line in found:
            print(*line, sep="  ", flush=True)
        text = _page(lines, rates, device, limits, options.batch)
        if options.keep:  # now: the call may be ended at any time
            options.keep.parent.mkdir(parents=True, exist_ok=True)
            options.keep.write_text(text, encoding="utf-8")
        gc.collect()  # a recording and its step hold each other, and memory
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(text)
    return int(any("too large" in line[2] or line[1] == "failed" for line in lines))


def _narrowed(config: ModelConfig, width: float) -> ModelConfig:
    return ModelConfig(kind=config.kind, size=config.size, width=width)


def _page(
    lines: list[list[str]],
    rates: dict[str, dict[str, float]],
    device: torch.device,
    limits: roofline.Roofline,
    batch: int,
) -> str:
    facts = environment(device, "cifar10")
    products = ", ".join(
        f"{precision} {rate / 1e12:.1f}" for precision, rate in limits.flop_per_s.items()
    )
    per_epoch = {
        name: {way: round(s, 4) for way, s in found.items()} for name, found in rates.items()
    }
    software = f"torch {torch.__version__}, CUDA {facts['cuda']}, driver {facts.get('driver')}"
    return f"""# The training step on {facts["device"]}

{software}, commit {facts["commit"]}, batch {batch}.
Measured limits: products in TFLOP/s {products}; memory {limits.bytes_per_s / 1e12:.2f} TB/s.

The error is that of one step's change of the weights against float64 on the CPU; a graph's is
against the same {GRAPH_STEPS} steps unrecorded. The roofline is the time of the step's products or
of its memory, whichever is longer (`benchmarks/roofline.py`).

{table([HEADER, *lines])}

Seconds per epoch of {TRAINING_IMAGES} images, by network and way:

```json
{json.dumps(per_epoch, indent=1)}
```
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help=", ".join(MODELS))
    add("--device", default="cuda")
    add("--batch", type=int, default=250)
    add("--rounds", type=int, default=7)
    add("--width", type=float, default=1.0, help="narrower networks, to try the program")
    add("--matrix", type=int, default=roofline.MATRIX, help="rows of the roofline's product")
    add("--copied-bytes", type=int, default=roofline.COPIED_BYTES)
    add("--keep", type=Path, metavar="FILE", help="write the page there, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
