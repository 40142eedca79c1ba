"""Our layers against a plain port of the paper's formula: `python -m benchmarks.cpu`, `make bench`.

Every row runs its implementations in turn, round after round in one process, and has the medians
of the times and of the rounds' ratios, so that other load affects all implementations alike. By
default the time is CPU time on one thread, which other programs change little. Prints a page in
markdown that names the machine; `--keep` writes it to benchmarks/results/.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import torch

from aol.config import Kind, ModelConfig
from benchmarks import implementations, memory
from benchmarks.implementations import Implementations
from benchmarks.machine import CLOCKS, describe_machine, load_average, markdown_table, publish

HEADER = ["measurement", "baseline ms", "ours ms", "orthogonium ms", "ratio", "target"]
Loads = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A row of the table: the implementations to compare, and the target of their ratio."""

    name: str
    title: str
    make: Callable[[], Implementations]
    target: float
    rounds: int


def rescale_row(name: str, shape: tuple[int, ...], target: float, rounds: int) -> Row:
    """Return the row of a rescaling with its gradient."""
    channels = f"{shape[0]}" if shape[0] == shape[1] else f"{shape[1]} to {shape[0]}"
    layer = f"dense {channels}" if len(shape) == 2 else f"conv {shape[2]}×{shape[3]} of {channels}"
    return Row(name, f"rescale, {layer}", lambda: implementations.rescale(shape), target, rounds)


def model_rows(model: str, kind: Kind, batch: int, target: float) -> list[Row]:
    """Return the rows of a training step and of an evaluation with kept weights."""
    name, config = model.removeprefix("AOL-").lower(), ModelConfig(kind=kind)
    return [
        Row(
            f"step-{name}",
            f"training step, {model}, batch {batch}",
            lambda: implementations.step(config, batch),
            target,
            5,
        ),
        Row(
            f"eval-{name}",
            f"evaluation, weights kept, {model}, batch {batch}",
            lambda: implementations.evaluation(config, batch),
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
    Row("augment", "augmentation, 250 images", implementations.augmentation, 20.0, 9),
]
MEMORY: dict[str, tuple[Kind, int]] = {
    "small": ("patchwise", 250),
    "std": ("std", 50),
    "conv": ("conv", 50),
}


def measure(row: Row, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Return the seconds of every round but the first, by implementation."""
    implementations = row.make()
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(row.rounds + 1):
        for name, run in implementations.items():
            before = clock()
            run()
            seconds[name].append(clock() - before)
    return {name: values[1:] for name, values in seconds.items()}


def time_cells(row: Row, seconds: dict[str, list[float]]) -> list[str]:
    """Return the row's cells: times in milliseconds, median of the rounds' ratios, target."""
    ratios = [plain / ours for plain, ours in zip(seconds["plain"], seconds["ours"], strict=True)]
    other = f"{1e3 * median(seconds['orthogonium']):.1f}" if "orthogonium" in seconds else "–"
    times = [f"{1e3 * median(seconds[name]):.2f}" for name in ("plain", "ours")]
    return [row.title, *times, other, f"{median(ratios):.2f}×", f"≥ {row.target}×"]


def memory_cells(name: str, kind: Kind, batch: int) -> list[str]:
    """Return the cells of the peak memory of training steps."""
    plain, ours = (memory.peak_mb(one, kind, batch) for one in ("plain", "ours"))
    cells = [f"{plain:.0f} MB", f"{ours:.0f} MB", "–", f"{ours / plain:.2f}×", "≤ 0.8×"]
    return [f"peak memory of a training step, {name}, batch {batch}", *cells]


def share_cells(seconds: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return the cells of the augmentation's share of a step of AOL-Small."""
    augmenting, step = (median(seconds[name]["ours"]) for name in ("augment", "step-small"))
    share = f"{100 * augmenting / step:.1f} %"
    return ["augmentation's share of AOL-Small's step", "–", share, "–", "–", "≤ 3 %"]


def page(rows: list[list[str]], clock: str, loads: Loads, duration_s: float) -> str:
    """Return the page with the table and the machine, in markdown."""
    versions = f"torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    return f"""# Our layers against a plain port

{describe_machine()}, threads: {torch.get_num_threads()}, {versions}.
Load {loads[0]:.1f} before and {loads[1]:.1f} after, duration {duration_s:.0f} s.

Times are medians of {clock} time, ratios medians of the ratios of each round. The baseline is a
plain port of the paper's formula (`benchmarks/plain.py`); for the augmentation it is torchvision's
v2 transforms, image by image.

{markdown_table([HEADER, *rows])}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen rows and publish the page."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    started, before = time.perf_counter(), load_average()
    lines: list[list[str]] = []
    seconds: dict[str, dict[str, list[float]]] = {}
    for row in ROWS:
        if not options.rows or row.name in options.rows:
            seconds[row.name] = measure(row, CLOCKS[options.clock])
            lines.append(time_cells(row, seconds[row.name]))
            print(*lines[-1], sep="  ", flush=True)
    if {"augment", "step-small"} <= set(seconds):
        lines.append(share_cells(seconds))
    for name, (kind, batch) in MEMORY.items():
        if not options.rows or f"memory-{name}" in options.rows:
            lines.append(memory_cells(name, kind, batch))
    duration = time.perf_counter() - started
    publish(page(lines, options.clock, (before, load_average()), duration), options.keep)


def _parser() -> argparse.ArgumentParser:
    names = [row.name for row in ROWS] + [f"memory-{name}" for name in MEMORY]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(names)}")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--keep", metavar="NAME", help="write benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    main()
