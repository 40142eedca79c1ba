"""The engine against a plain port of the paper's formula: `python -m benchmarks.cpu`, `make bench`.

Every row runs its contestants in turn, round after round in one process, and quotes medians: of
the times, and of the rounds' ratios, so that what else the machine does falls on all alike.
By default the time is the processor's, on one thread: other programs change it little, while a
wait of two threads for each other on a shared machine says nothing about either contestant.
Prints a table in markdown and keeps it in benchmarks/results/ with the machine named.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from aol.config import Kind, ModelConfig
from benchmarks import contestants, memory
from benchmarks.machine import CLOCKS, load, report

Contestants = dict[str, Callable[[], Any]]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One line of the table: what is compared, and the ratio that it should reach."""

    name: str
    what: str
    make: Callable[[], Contestants]
    target: float
    rounds: int


def rescale_row(name: str, shape: tuple[int, ...], target: float, rounds: int) -> Row:
    """A rescaling with its gradient."""
    channels = f"{shape[0]}" if shape[0] == shape[1] else f"{shape[1]} to {shape[0]}"
    what = f"dense {channels}" if len(shape) == 2 else f"conv {shape[2]}×{shape[3]} of {channels}"
    return Row(name, f"rescale, {what}", lambda: contestants.rescale(shape), target, rounds)


def model_rows(model: str, kind: Kind, batch: int, target: float) -> list[Row]:
    """A training step and an evaluation with kept weights."""
    name, config = model.removeprefix("AOL-").lower(), ModelConfig(kind=kind)
    return [
        Row(
            f"step-{name}",
            f"training step, {model}, batch {batch}",
            lambda: contestants.step(config, batch),
            target,
            5,
        ),
        Row(
            f"eval-{name}",
            f"evaluation, weights kept, {model}, batch {batch}",
            lambda: contestants.evaluation(config, batch),
            2.5,
            5,
        ),
    ]


ROWS = [
    rescale_row("conv16", (16, 16, 3, 3), 1.0, 200),
    rescale_row("conv32", (32, 32, 3, 3), 1.0, 200),
    rescale_row("conv64", (64, 64, 3, 3), 1.0, 100),
    rescale_row("conv192", (192, 192, 3, 3), 3.5, 40),
    rescale_row("conv256", (256, 256, 3, 3), 3.5, 30),
    rescale_row("conv512", (512, 512, 3, 3), 4.0, 9),
    rescale_row("conv1x1-16", (16, 12, 1, 1), 1.0, 400),
    rescale_row("conv1x1-32", (32, 3, 1, 1), 1.0, 400),
    rescale_row("conv1x1", (1024, 1024, 1, 1), 7.0, 15),
    rescale_row("dense64", (64, 64), 1.0, 200),
    rescale_row("dense256", (256, 256), 1.0, 100),
    rescale_row("dense1024", (1024, 1024), 1.8, 25),
    rescale_row("dense2048", (2048, 2048), 1.8, 9),
    *model_rows("AOL-Small", "patchwise", 250, 1.6),
    *model_rows("AOL-STD", "std", 50, 4.0),
    *model_rows("AOL-Conv", "conv", 50, 5.0),
    Row("augment", "augmentation, 250 images", contestants.augmentation, 20.0, 9),
]
MEMORY: dict[str, tuple[Kind, int]] = {
    "small": ("patchwise", 250),
    "std": ("std", 50),
    "conv": ("conv", 50),
}


def measured(row: Row, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every round by contestant, the first round left out."""
    runs = row.make()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(row.rounds + 1):
        for name, run in runs.items():
            before = clock()
            run()
            seconds[name].append(clock() - before)
    return {name: values[1:] for name, values in seconds.items()}


def time_line(row: Row, seconds: dict[str, list[float]]) -> list[str]:
    """The row's cells: times in milliseconds, the median of the rounds' ratios, the target."""
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    peer = f"{1e3 * median(seconds['orthogonium']):.1f}" if "orthogonium" in seconds else "–"
    times = [f"{1e3 * median(seconds[name]):.2f}" for name in ("plain", "ours")]
    return [row.what, *times, peer, f"{median(ratios):.2f}×", f"≥ {row.target}×"]


def memory_line(name: str, kind: Kind, batch: int) -> list[str]:
    """Peak memory of three training steps above what the imports take, in MB."""
    plain, ours = (memory.peak_mb(who, kind, batch) for who in ("plain", "ours"))
    cells = [f"{plain:.0f} MB", f"{ours:.0f} MB", "–", f"{ours / plain:.2f}×", "≤ 0.8×"]
    return [f"peak memory of a training step, {name}, batch {batch}", *cells]


def share_line(seconds: dict[str, dict[str, list[float]]]) -> list[str]:
    """What the augmentation adds to the step of AOL-Small."""
    augmenting, step = (median(seconds[name]["ours"]) for name in ("augment", "step-small"))
    share = f"{100 * augmenting / step:.1f} %"
    return ["augmentation's share of AOL-Small's step", "–", share, "–", "–", "≤ 3 %"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    started, before = time.perf_counter(), load()
    lines: list[list[str]] = []
    seconds: dict[str, dict[str, list[float]]] = {}
    for row in ROWS:
        if not options.rows or row.name in options.rows:
            seconds[row.name] = measured(row, CLOCKS[options.clock])
            lines.append(time_line(row, seconds[row.name]))
            print(*lines[-1], sep="  ", flush=True)
    if {"augment", "step-small"} <= set(seconds):
        lines.append(share_line(seconds))
    for name, (kind, batch) in MEMORY.items():
        if not options.rows or f"memory-{name}" in options.rows:
            lines.append(memory_line(name, kind, batch))
    text = report(
        lines, clock=options.clock, loads=(before, load()), took_s=time.perf_counter() - started
    )
    print(text)
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.keep}.md").write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    names = [row.name for row in ROWS] + [f"memory-{name}" for name in MEMORY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(names)}")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--keep", metavar="NAME", help="write benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    main()
