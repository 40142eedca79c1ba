"""The training step on a GPU, way by way: `python -m benchmarks.gpu`. Needs torch alone.

For every network of the paper: the plain port in float32, and our step in float32, TF32 and bf16,
step by step and recorded as a graph. Each way is checked before it is timed, against float64 steps
taken before and kept in `reference.pt` (`benchmarks/checks.py`). Then all ways that work run in
turn, round after round, and medians are quoted. The roofline is measured in the same call. Prints a
table in markdown, and keeps it with `--keep`.
"""

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from aol.config import ModelConfig
from aol.environment import environment
from aol.fused import kernels_for
from aol.train import train_in
from benchmarks import roofline
from benchmarks.checks import GRAPH_STEPS, checks, expected_of, of_those_that_work
from benchmarks.contestants import Training
from benchmarks.machine import table
from benchmarks.reference import (
    CHECKED_STEPS,
    Reference,
    ReferenceFileError,
    checked,
    keep,
    make,
    read,
)
from benchmarks.ways import MODELS, Way, narrowed, start_of, ways_of

TRAINING_IMAGES = 50_000
ROUND_S = 0.1
REFERENCE = Path(__file__).with_name("reference.pt")
HEADER = ["network", "way", "error", "ms a step", "images/s", "of plain", "of roofline"]
FAILED, NOT_MEASURED = "failed", ["–"] * len(HEADER)


def seconds(
    config: ModelConfig,
    model: nn.Sequential,
    device: torch.device,
    ways: Iterable[Way],
    batch: int,
    rounds: int,
) -> dict[Way, float]:
    """The median time of a step each way, all in turn; without those that fail."""

    def warm(way: Way) -> tuple[Training, int]:
        train_in(way.precision)
        run = way.training(model, config, batch)(device)
        for _ in range(GRAPH_STEPS):
            run()
        return run, max(1, round(ROUND_S / roofline.seconds_of(run, device, 3)))

    runs = of_those_that_work(ways, warm)
    times = {way: list[float]() for way in runs}
    for _ in range(rounds):
        for way, (run, count) in runs.items():
            train_in(way.precision)
            times[way].append(roofline.seconds_of(run, device, count))
    return {way: median(values) for way, values in times.items()}


def lines_of(
    name: str,
    config: ModelConfig,
    device: torch.device,
    limits: roofline.Roofline,
    options: argparse.Namespace,
    brought: dict[str, Reference],
) -> tuple[list[list[str]], dict[str, float]]:
    """The table's lines of one network, and its seconds per epoch by way."""
    model, ways = start_of(config), ways_of(device, recorded=not options.eager)
    found = checks(config, model, device, expected_of(name, config, model, brought), ways)
    took = seconds(config, model, device, found, options.batch, options.rounds)
    plain = next((seconds for way, seconds in took.items() if way.plain), None)
    lines = []
    for way in ways:
        check, step = found.get(way), took.get(way)
        line = [name, str(way), str(check or FAILED)]
        if step is None:
            lines.append([*line, FAILED, *NOT_MEASURED[len(line) + 1 :]])
            continue
        least = limits.step_seconds(config, options.batch, way.precision)
        line += [f"{1e3 * step:.2f}", f"{options.batch / step:,.0f}"]
        line += [f"{plain / step:.1f}×" if plain else "–", f"{100 * least / step:.0f} %"]
        lines.append(line)
    steps = TRAINING_IMAGES / options.batch
    return lines, {str(way): steps * step for way, step in took.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; 1 if a way failed or is too far from what it should do."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.networks) - set(MODELS)):
        parser.error(f"unknown: {', '.join(unknown)}; the networks are {', '.join(MODELS)}")
    chosen = {name: narrowed(MODELS[name], options.width) for name in options.networks or MODELS}
    try:
        if options.make_reference:
            return make_references(options.make_reference, chosen)
        brought = read(options.reference)
    except ReferenceFileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    device = torch.device(options.device)
    limits = roofline.measure(device, options.matrix, options.copied_bytes)
    lines: list[list[str]] = []
    rates: dict[str, dict[str, float]] = {}
    for name, config in chosen.items():
        try:
            found, rates[name] = lines_of(name, config, device, limits, options, brought)
        except Exception:  # the other networks are worth their time all the same
            traceback.print_exc()
            found = [[name, FAILED, *NOT_MEASURED[2:]]]
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
    return int(any(FAILED in line or "too large" in line[2] for line in lines))


def make_references(file: Path, chosen: dict[str, ModelConfig]) -> int:
    """Add to a file the references of networks that it has not; each is kept at once."""
    references = read(file) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, config in chosen.items():
        settings, model = checked(config), start_of(config)
        if name in references and references[name].misfit(settings, model) is None:
            print(f"{name}: there already", flush=True)
            continue
        started = time.monotonic()
        references[name] = make(settings, model)
        keep(file, references)
        print(f"{name}: made in {time.monotonic() - started:.0f} s", flush=True)
    return 0


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
    kernels = "with" if kernels_for(torch.empty(0, device=device)) else "without"
    software = f"torch {torch.__version__}, CUDA {facts['cuda']}, driver {facts.get('driver')}"
    return f"""# The training step on {facts["device"]}

{software}, commit {facts["commit"]}, batch {batch}, {kernels} fused kernels.
Measured limits: products in TFLOP/s {products}; memory {limits.bytes_per_s / 1e12:.2f} TB/s.

The error is that of the change of the weights after {CHECKED_STEPS} steps against float64 on the
CPU; a graph's is against the same {GRAPH_STEPS} steps unrecorded. The roofline is the time of the
step's products or of its memory, whichever is longer (`benchmarks/roofline.py`).

{table([HEADER, *lines])}

Seconds per epoch of {TRAINING_IMAGES} images if it were its steps alone, by network and way:

```json
{json.dumps(per_epoch, indent=1)}
```
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help=", ".join(MODELS))
    add("--device", default="cuda")
    add("--eager", action="store_true", help="no graphs: where recording fails for good")
    add("--batch", type=int, default=250)
    add("--rounds", type=int, default=7)
    add("--width", type=float, default=1.0, help="narrower networks, to try the program")
    add("--matrix", type=int, default=roofline.MATRIX, help="rows of the roofline's product")
    add("--copied-bytes", type=int, default=roofline.COPIED_BYTES)
    add("--reference", type=Path, default=REFERENCE, metavar="FILE", help="float64 steps to expect")
    add("--make-reference", type=Path, metavar="FILE", help="take them here, without a GPU")
    add("--keep", type=Path, metavar="FILE", help="write the page there, too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
