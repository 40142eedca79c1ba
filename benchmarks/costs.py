"""The costs of AOL's rescaling and of orthogonal layers: `python -m benchmarks.costs`.

The square layers of AOL-Small are replaced by those of `benchmarks.orthogonal`; all networks train
on the same batch. Steps take turns, round after round in one process, so that other load affects
all methods alike; peak memory is measured in a process per method and repetition. `--keep` writes
`benchmarks/results/costs.json`, which a claim of `experiments.yaml` refers to.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from statistics import fmean, median

import torch
from torch import nn

from aol.config import ModelConfig
from aol.layers.modules import AOLConv2d, AOLLinear, MaxMin
from aol.training.loss import offset_cross_entropy
from aol.training.optimizer import make_optimizer
from benchmarks.implementations import initial_model, random_batch, train_config
from benchmarks.machine import CLOCKS, RESULTS, describe_machine, markdown_table
from benchmarks.memory import peak_kib
from benchmarks.orthogonal import SLL, SOC, Cayley, CayleyConv

METHODS = ("AOL", "Cayley", "SOC", "SLL")
DENSE: dict[str, Callable[[int], nn.Module]] = {"Cayley": Cayley, "SOC": SOC, "SLL": SLL}
CONVOLUTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "Cayley": CayleyConv,
    "SOC": SOC,
    "SLL": SLL,
}
MEMORY_STEPS = 3  # the first allocates momentum and gradients


def network(method: str, width: float) -> nn.Sequential:
    """Return AOL-Small with its square layers replaced by those of a method.

    `SLL` has its own activation, so that MaxMin after it is left out.
    """
    model = initial_model(ModelConfig(kind="patchwise", width=width))
    modules: list[nn.Module] = []
    for module in model:
        if isinstance(modules[-1] if modules else None, SLL) and isinstance(module, MaxMin):
            continue
        modules.append(_replaced(module, method))
    return nn.Sequential(*modules)


def _replaced(module: nn.Module, method: str) -> nn.Module:
    weight = getattr(module, "weight", None)
    if method == "AOL" or weight is None or weight.shape[0] != weight.shape[1]:
        return module
    channels, size = int(weight.shape[0]), int(weight.shape[-1])
    if isinstance(module, AOLLinear):
        return DENSE[method](channels)
    return CONVOLUTIONS[method](channels, size) if isinstance(module, AOLConv2d) else module


def training_step(method: str, width: float, batch: int) -> Callable[[], None]:
    """Return a function that takes a training step."""
    config = train_config(ModelConfig(kind="patchwise", width=width), batch)
    model = network(method, width)
    optimizer = make_optimizer(model, config)
    images, loss = random_batch(batch), config.loss
    inputs = images.pixels.float() / 255

    def step() -> None:
        rows = offset_cross_entropy(
            model(inputs), images.labels, offset=loss.offset, temperature=loss.temperature
        )
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()

    return step


def measure_time(width: float, batch: int, rounds: int, clock: str) -> dict[str, list[float]]:
    """Return the milliseconds of each round's step but the first, by method."""
    steps = {method: training_step(method, width, batch) for method in METHODS}
    found: dict[str, list[float]] = {method: [] for method in METHODS}
    for _ in range(rounds + 1):
        for method, step in steps.items():
            before = CLOCKS[clock]()
            step()
            found[method].append(1e3 * (CLOCKS[clock]() - before))
    return {method: values[1:] for method, values in found.items()}


def peak_mb(method: str, width: float, batch: int) -> float:
    """Return the peak resident memory of training steps, without that of the imports."""
    command = [sys.executable, "-m", "benchmarks.costs", "--memory-of", method]
    command += ["--width", str(width), "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def page(costs: dict[str, dict[str, list[float]]], setting: str) -> str:
    """Return the costs of each method as a table in markdown, with their ratios to AOL's."""
    aol = costs["AOL"]
    rows = [["method", "step ms", "ratio", "peak MB", "ratio"]]
    for method, cost in costs.items():
        time, memory = median(cost["step_ms"]), fmean(cost["peak_mb"])
        ratios = [x / y for x, y in zip(cost["step_ms"], aol["step_ms"], strict=True)]
        rows.append(
            [
                method,
                f"{time:.0f}",
                f"{median(ratios):.2f}×",
                f"{memory:.0f}",
                f"{memory / fmean(aol['peak_mb']):.2f}×",
            ]
        )
    return f"# The cost of orthogonality\n\n{setting}.\n\n{markdown_table(rows)}\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all methods, print the table, and write the record with `--keep`."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory_of:
        before = peak_kib()
        step = training_step(options.memory_of, options.width, options.batch)
        for _ in range(MEMORY_STEPS):
            step()
        print((peak_kib() - before) / 1000)
        return
    times = measure_time(options.width, options.batch, options.rounds, options.clock)
    memory = {
        method: [peak_mb(method, options.width, options.batch) for _ in range(options.repeats)]
        for method in METHODS
    }
    setting = (
        f"AOL-Small of width {options.width:g}, batch {options.batch}, {options.clock} time, "
        f"{describe_machine()}, one thread, torch {torch.__version__}"
    )
    methods = {one: {"step_ms": times[one], "peak_mb": memory[one]} for one in METHODS}
    print(page(methods, setting))
    if options.keep:
        record = {"schema": "aol-costs/1", "setting": setting, "methods": methods}
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (RESULTS / "costs.json").write_text(f"{text}\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=8, help="of memory; default: %(default)s")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="default: %(default)s")
    parser.add_argument("--keep", action="store_true", help="write benchmarks/results/costs.json")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
