"""Describing the machine that a page was measured on, and writing the page."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
CPUINFO = Path("/proc/cpuinfo")
RESULTS = Path(__file__).parent / "results"
# Linux's names, from wide to narrow: the widest one determines the speed of matrix products.
VECTORS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE"}
NUMBERS = {"family": "cpu family", "model": "model"}


def describe_machine(cpuinfo: Path = CPUINFO) -> str:
    """Return the processor's name, family, model and widest vectors, and the number of cores.

    The name alone is not enough: virtual machines use one name for processors that differ by a
    factor of two.
    """
    known = _read_cpuinfo(cpuinfo)
    name = known.get("model name") or platform.processor() or platform.machine()
    parts = [f"{key} {known[entry]}" for key, entry in NUMBERS.items() if entry in known]
    flags = set(known.get("flags", known.get("Features", "")).split())
    widest = [vector for flag, vector in VECTORS.items() if flag in flags]
    details = f" ({', '.join(parts + widest[:1])})" if parts or widest else ""
    return f"{name}{details}, {os.cpu_count()} cores"


def load_average() -> float:
    """Return the system's load in the last minute."""
    return os.getloadavg()[0]


def markdown_table(rows: list[list[str]]) -> str:
    """Return rows of cells as a table in markdown; the first row is the header."""
    header, *others = rows
    ruled = [header, ["---"] * len(header), *others]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in ruled)


def publish(page: str, name: str | None) -> None:
    """Print a page; with a name, write it to `benchmarks/results` as well."""
    print(page)
    if name:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.md").write_text(page, encoding="utf-8")


def _read_cpuinfo(cpuinfo: Path) -> dict[str, str]:
    """Return Linux's entries for the first processor; nothing on other systems."""
    if not cpuinfo.exists():
        return {}
    first = cpuinfo.read_text(encoding="utf-8").split("\n\n")[0]
    entries = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in entries}
