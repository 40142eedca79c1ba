"""The machine that a table was measured on, and the table itself."""

import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
HEADER = ["what", "baseline ms", "ours ms", "orthogonium ms", "ratio", "target"]


def machine() -> str:
    """The processor, and how many of its cores there are."""
    return f"{_processor()}, {os.cpu_count()} cores"


def load() -> float:
    """Processes that wanted a core in the last minute."""
    return os.getloadavg()[0]


def report(lines: list[list[str]], *, clock: str, loads: tuple[float, float], took_s: float) -> str:
    """The table with its machine in markdown."""
    versions = f"torch {torch.__version__}, {datetime.now(UTC):%Y-%m-%d}"
    return f"""# Engine against plain port

{machine()}, threads used: {torch.get_num_threads()}, {versions}.
Load {loads[0]:.1f} before and {loads[1]:.1f} after, {took_s:.0f} s in all.

Times are medians of {clock} time, ratios medians round by round. The baseline is a plain port of
the paper's formula (`benchmarks/plain.py`); for the augmentation it is torchvision's v2
transforms, image by image.

{table([HEADER, *lines])}
"""


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the first the header, in markdown."""
    header, *others = rows
    ruled = [header, ["---"] * len(header), *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in ruled)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
