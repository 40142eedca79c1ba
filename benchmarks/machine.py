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


# From wide to narrow, as Linux calls them: products go at the rate of the widest.
VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE"}
NUMBERS = {"family": "cpu family", "model": "model"}
CPUINFO = Path("/proc/cpuinfo")


def machine(cpuinfo: Path = CPUINFO) -> str:
    """The processor by name, family and model, its widest vectors, and how many cores there are.

    Virtual machines give one name to processors whose products differ by a factor of two; family
    and model tell them apart.
    """
    known = _known(cpuinfo)
    name = known.get("model name") or platform.processor() or platform.machine()
    parts = [f"{key} {known[entry]}" for key, entry in NUMBERS.items() if entry in known]
    flags = set(known.get("flags", known.get("Features", "")).split())
    widest = [called for flag, called in VECTORS.items() if flag in flags]
    described = f" ({', '.join(parts + widest[:1])})" if parts or widest else ""
    return f"{name}{described}, {os.cpu_count()} cores"


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


def _known(cpuinfo: Path) -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    if not cpuinfo.exists():
        return {}
    first = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0]
    entries = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in entries}
