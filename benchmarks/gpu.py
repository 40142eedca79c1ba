"""The training step on a GPU in every variant: `python -m benchmarks.gpu`. Needs only torch.

For every network of the paper: the plain port in float32, and our step in float32, TF32 and bf16,
both eager and recorded as a CUDA graph. Every variant is checked before it is timed, against the
float64 steps in `reference.pt` (`benchmarks/checks.py`). The variants that work then run in turn,
round after round, and the page has the medians. Graphs are recorded last, because a failed
recording can damage torch's allocator. The roofline is measured in the same call. Prints a page in
markdown, and writes it with `--keep`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from aol.config import ModelConfig
from aol.ops.dispatch import kernels_for
from aol.provenance import environment
from aol.training.optimizer import set_training_precision
from benchmarks import roofline
from benchmarks.checks import GRAPH_STEPS, Check, check, expected_trajectory, try_each
from benchmarks.device import free
from benchmarks.implementations import Training
from benchmarks.machine import markdown_table
from benchmarks.reference import (
    CHECK_STEPS,
    ReferenceFileError,
    Trajectory,
    check_config,
    load_references,
    make_reference,
    save_references,
)
from benchmarks.variants import (
    EAGER_VARIANTS,
    MODELS,
    Network,
    Variant,
    noisy_model,
    recorded_variants,
    scale_width,
)

TRAINING_IMAGES = 50_000
ROUND_S = 0.1
REFERENCE = Path(__file__).with_name("reference.pt")
HEADER = ["network", "variant", "error", "ms per step", "images/s", "speedup", "of roofline"]
FAILED, MISSING = "failed", "–"


@dataclass
class Measurement:
    """The results of a network so far, by variant."""

    network: Network
    checks: dict[Variant, Check] = field(default_factory=dict)
    seconds: dict[Variant, float] = field(default_factory=dict)  # per step

    def measure(
        self, variants: Sequence[Variant], reference: Trajectory, *, batch: int, rounds: int
    ) -> None:
        """Check these variants, then time those that work, in turn."""
        name, network = self.network.name, self.network

        def warm_up(variant: Variant) -> tuple[Training, int]:
            run = network.training(variant, batch)
            for _ in range(GRAPH_STEPS):
                run()
            return run, max(1, round(ROUND_S / roofline.seconds_of(run, network.device, 3)))

        def time_round(variant: Variant) -> float:
            run, count = runs[variant]
            set_training_precision(variant.precision)
            return roofline.seconds_of(run, network.device, count)

        checks = try_each(variants, lambda one: check(network, one, reference), f"{name}, check")
        self.checks |= checks
        runs = try_each(checks, warm_up, f"{name}, warm-up")
        times = {variant: list[float]() for variant in runs}
        for _ in range(rounds):
            seconds = try_each(list(times), time_round, f"{name}, round")
            times = {variant: [*times[variant], step] for variant, step in seconds.items()}
        self.seconds |= {variant: median(steps) for variant, steps in times.items()}

    def cells(self, variant: Variant, batch: int, limits: roofline.Roofline) -> list[str]:
        """Return the cells of a variant, as far as it could be measured."""
        cells = [self.network.name, str(variant), str(self.checks.get(variant, FAILED))]
        if variant not in self.seconds:
            return [*cells, FAILED, *[MISSING] * 3]
        step = self.seconds[variant]
        plain = next((plain for other, plain in self.seconds.items() if other.plain), None)
        limit = limits.step_seconds(self.network.config, batch, variant.precision)
        speedup = f"{plain / step:.1f}×" if plain else MISSING
        times = [f"{1e3 * step:.2f}", f"{batch / step:,.0f}"]
        return [*cells, *times, speedup, f"{100 * limit / step:.0f} %"]

    def seconds_per_epoch(self, batch: int) -> dict[str, float]:
        """Return the time of an epoch's steps by variant, without anything else."""
        steps = TRAINING_IMAGES / batch
        return {str(variant): round(steps * step, 4) for variant, step in self.seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen networks; return 1 if a variant failed or its error is too large."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.networks) - set(MODELS)):
        parser.error(f"unknown: {', '.join(unknown)}; the networks are {', '.join(MODELS)}")
    configs = {
        name: scale_width(MODELS[name], options.width) for name in options.networks or MODELS
    }
    try:
        if options.make_reference:
            return add_references(options.make_reference, configs)
        references = load_references(options.reference)
    except ReferenceFileError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    device = torch.device(options.device)
    limits = roofline.measure(device, options.matrix, options.copied_bytes)
    recorded = [] if options.eager else recorded_variants(device)
    measurements: dict[str, Measurement] = {}
    rows: dict[tuple[str, Variant], list[str]] = {}
    for name, config in configs.items():
        network = Network(name, config, noisy_model(config), device)
        found = measurements[name] = Measurement(network)
        reference = expected_trajectory(network, references)
        for variants in (EAGER_VARIANTS, recorded):  # last those that can damage the allocator
            found.measure(variants, reference, batch=options.batch, rounds=options.rounds)
            for variant in variants:
                rows[name, variant] = found.cells(variant, options.batch, limits)
                print(*rows[name, variant], sep="  ", flush=True)
            page = _page([*rows.values()], measurements, limits, options)
            if options.keep:  # in every round, because the program may be stopped at any time
                options.keep.parent.mkdir(parents=True, exist_ok=True)
                options.keep.write_text(page, encoding="utf-8")
            free(device)
        if not found.seconds.keys() >= set(recorded):
            print("A graph failed: skipping the graphs of all other networks", file=sys.stderr)
            recorded = []
    print(page)
    checks = [check for found in measurements.values() for check in found.checks.values()]
    failed = any(check.failure for check in checks) or any(FAILED in row for row in rows.values())
    return int(failed)


def add_references(file: Path, configs: dict[str, ModelConfig]) -> int:
    """Add the missing references to a file, and save it after each one."""
    references = load_references(file) if file.exists() else {}
    file.parent.mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        settings, model = check_config(config), noisy_model(config)
        if name in references and references[name].mismatch(settings, model) is None:
            print(f"{name}: exists already", flush=True)
            continue
        started = time.monotonic()
        references[name] = make_reference(settings, model)
        save_references(file, references)
        print(f"{name}: computed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _page(
    rows: list[list[str]],
    measurements: dict[str, Measurement],
    limits: roofline.Roofline,
    options: argparse.Namespace,
) -> str:
    device = torch.device(options.device)
    facts = environment(device, "cifar10")
    products = ", ".join(
        f"{precision} {rate / 1e12:.1f}" for precision, rate in limits.flop_per_s.items()
    )
    per_epoch = {
        name: found.seconds_per_epoch(options.batch) for name, found in measurements.items()
    }
    kernels = "with" if kernels_for(torch.empty(0, device=device)) else "without"
    software = f"torch {torch.__version__}, CUDA {facts['cuda']}, driver {facts.get('driver')}"
    return f"""# The training step on {facts["device"]}

{software}, commit {facts["commit"]}, batch {options.batch}, {kernels} fused kernels.
Measured limits: products in TFLOP/s {products}; memory {limits.bytes_per_s / 1e12:.2f} TB/s.

The error is the relative error of the change of the weights after {CHECK_STEPS} steps, against
float64 on the CPU; for a graph, against {GRAPH_STEPS} unrecorded steps. The speedup is over the
plain port. The roofline is the time of the step's products or of its memory accesses, whichever is
longer (`benchmarks/roofline.py`).

{markdown_table([HEADER, *rows])}

Seconds per epoch of {TRAINING_IMAGES} images for the steps alone, by network and variant:

```json
{json.dumps(per_epoch, indent=1)}
```
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help=", ".join(MODELS))
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--eager", action="store_true", help="without graphs, where recording always fails")
    add("--batch", type=int, default=250)
    add("--rounds", type=int, default=7)
    add("--width", type=float, default=1.0, help="narrower networks, to try the program")
    add("--matrix", type=int, default=roofline.MATRIX, help="rows of the roofline's product")
    add("--copied-bytes", type=int, default=roofline.COPIED_BYTES)
    add("--reference", type=Path, default=REFERENCE, metavar="FILE", help="the float64 steps")
    add("--make-reference", type=Path, metavar="FILE", help="compute the steps, without a GPU")
    add("--keep", type=Path, metavar="FILE", help="write the page to a file as well")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
