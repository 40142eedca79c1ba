"""The training step on a GPU, way by way: `python -m benchmarks.gpu`. Needs torch alone.

For every network of the paper: the plain port in float32, and our step in float32, TF32 and bf16,
step by step and recorded as a graph. Each way is checked before it is timed, against float64 steps
taken before and kept in `reference.pt` (`benchmarks/checks.py`). Then the ways that work run in
turn, round after round, and medians are quoted; recordings come after all others, since one that
fails can leave torch's allocator in disorder. The roofline is measured in the same call. Prints a
table in markdown, and keeps it with `--keep`.
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
from benchmarks.checks import GRAPH_STEPS, Check, check, expected_of, of_those_that_work
from benchmarks.contestants import Training
from benchmarks.device import free
from benchmarks.machine import table
from benchmarks.reference import (
    CHECKED_STEPS,
    Course,
    ReferenceFileError,
    checked,
    keep,
    make,
    read,
)
from benchmarks.ways import EAGER, MODELS, Subject, Way, narrowed, recorded_ways_of, start_of

TRAINING_IMAGES = 50_000
ROUND_S = 0.1
REFERENCE = Path(__file__).with_name("reference.pt")
HEADER = ["network", "way", "error", "ms a step", "images/s", "of plain", "of roofline"]
FAILED, NOTHING = "failed", "–"


@dataclass
class Measured:
    """What is known of a network so far, by way."""

    subject: Subject
    checks: dict[Way, Check] = field(default_factory=dict)
    seconds: dict[Way, float] = field(default_factory=dict)  # a step

    def measure(self, ways: Sequence[Way], exact: Course, *, batch: int, rounds: int) -> None:
        """Check these ways, then time those that work, all in turn."""
        name, subject = self.subject.name, self.subject
        doing = f"{name}, the check"
        found = of_those_that_work(ways, lambda way: check(subject, way, exact), doing)
        self.checks |= found

        def warm(way: Way) -> tuple[Training, int]:
            run = subject.training(way, batch)
            for _ in range(GRAPH_STEPS):
                run()
            return run, max(1, round(ROUND_S / roofline.seconds_of(run, subject.device, 3)))

        def seconds(way: Way) -> float:
            run, count = runs[way]
            set_training_precision(way.precision)
            return roofline.seconds_of(run, subject.device, count)

        runs = of_those_that_work(found, warm, f"{name}, warming up")
        times = {way: list[float]() for way in runs}
        for _ in range(rounds):
            took = of_those_that_work(list(times), seconds, f"{name}, a round")
            times = {way: [*times[way], step] for way, step in took.items()}
        self.seconds |= {way: median(steps) for way, steps in times.items()}

    def line(self, way: Way, batch: int, limits: roofline.Roofline) -> list[str]:
        """The table's line of a way, as far as it came."""
        line = [self.subject.name, str(way), str(self.checks.get(way, FAILED))]
        if way not in self.seconds:
            return [*line, FAILED, *[NOTHING] * 3]
        step = self.seconds[way]
        plain = next((plain for other, plain in self.seconds.items() if other.plain), None)
        least = limits.step_seconds(self.subject.config, batch, way.precision)
        line += [f"{1e3 * step:.2f}", f"{batch / step:,.0f}"]
        return [*line, f"{plain / step:.1f}×" if plain else NOTHING, f"{100 * least / step:.0f} %"]

    def per_epoch(self, batch: int) -> dict[str, float]:
        """Seconds per epoch by way, if it were its steps alone."""
        steps = TRAINING_IMAGES / batch
        return {str(way): round(steps * step, 4) for way, step in self.seconds.items()}


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
    recorded = [] if options.eager else recorded_ways_of(device)
    networks: dict[str, Measured] = {}
    lines: dict[tuple[str, Way], list[str]] = {}
    for name, config in chosen.items():
        subject = Subject(name, config, start_of(config), device)
        network = networks[name] = Measured(subject)
        exact = expected_of(subject, brought)
        for some in (EAGER, recorded):  # in this order: a recording that fails does damage
            network.measure(some, exact, batch=options.batch, rounds=options.rounds)
            for way in some:
                lines[name, way] = network.line(way, options.batch, limits)
                print(*lines[name, way], sep="  ", flush=True)
            text = _page([*lines.values()], networks, limits, options)
            if options.keep:  # now: the call may be ended at any time
                options.keep.parent.mkdir(parents=True, exist_ok=True)
                options.keep.write_text(text, encoding="utf-8")
            free(device)
        if not network.seconds.keys() >= set(recorded):
            print(
                "A recording failed: no further network is recorded in this process",
                file=sys.stderr,
            )
            recorded = []
    print(text)
    right = all(
        check.wrong is None for network in networks.values() for check in network.checks.values()
    )
    return int(not right or any(FAILED in line for line in lines.values()))


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
    networks: dict[str, Measured],
    limits: roofline.Roofline,
    options: argparse.Namespace,
) -> str:
    device = torch.device(options.device)
    facts = environment(device, "cifar10")
    products = ", ".join(
        f"{precision} {rate / 1e12:.1f}" for precision, rate in limits.flop_per_s.items()
    )
    per_epoch = {name: network.per_epoch(options.batch) for name, network in networks.items()}
    kernels = "with" if kernels_for(torch.empty(0, device=device)) else "without"
    software = f"torch {torch.__version__}, CUDA {facts['cuda']}, driver {facts.get('driver')}"
    return f"""# The training step on {facts["device"]}

{software}, commit {facts["commit"]}, batch {options.batch}, {kernels} fused kernels.
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
    add("--device", choices=("cuda", "cpu"), default="cuda")
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
