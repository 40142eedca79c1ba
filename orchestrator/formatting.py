"""Formatting of percentages, counts, durations, tables, JSON, paths and commands."""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

MISSING = "–"
DECIMALS = 1  # the paper prints percentages with one decimal
TIME_UNITS = (  # below so many seconds, the seconds of the unit and its name
    (90.0, 1, "s"),
    (5400.0, 60, "min"),
    (172800.0, 3600, "h"),
    (math.inf, 86400, "days"),
)


def format_percent(value: float | None, *, signed: bool = False) -> str:
    """Return a percentage with the paper's decimals, or `–` for None."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}z.{DECIMALS}f}"  # z: no -0.0


def format_significant(value: float) -> str:
    """Return a number with two significant digits, or all digits of its integer part."""
    if not value:
        return "0"
    rounded = float(f"{value:.1e}")
    decimals = 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:,.{max(0, decimals)}f}"


def format_duration(seconds: float | None, *, rough: bool = False) -> str:
    """Return a duration such as 1.2 s, 12 min or 40 days; with one significant digit if `rough`."""
    if seconds is None:
        return MISSING
    unit, name = next((unit, name) for limit, unit, name in TIME_UNITS if seconds < limit)
    length = seconds / unit
    if rough:
        length = float(f"{length:.0e}")
    return f"{round(length, 1):g} {name}" if length < 10 else f"{length:.0f} {name}"


def pluralize(count: float, singular: str, plural: str = "") -> str:
    """Return `1 seed` or `2 seeds`; `plural` is needed where it is not the singular and an s."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {singular if count == 1 else plural or f'{singular}s'}"


def format_table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    *,
    left: Container[str],
    style: str = "simple",
) -> str:
    """Return a text table in one of tabulate's styles; the columns in `left` are left-aligned."""
    from tabulate import tabulate

    align = ["left" if header in left else "right" for header in headers]
    return str(tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align))


def with_note(note: str, text: str) -> str:
    """Return the text below the note of its profile, which qualifies the numbers in it."""
    return f"{note}\n\n{text}" if note else text


def to_json(value: Any, **options: Any) -> str:
    """Return plain values as indented JSON in UTF-8; `options` are those of `json.dumps`."""
    return json.dumps(value, indent=2, ensure_ascii=False, **options)


def format_command(*words: object, python: str = "python") -> str:
    """Return a command of this program, quoted for a shell."""
    return shlex.join([python, "-m", "orchestrator", *map(str, words)])


def repeat_command() -> str:
    """Return the command as it was typed, without `--rerun`, which must not be repeated."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word == "--rerun":
            next(words, None)
        elif not word.startswith("--rerun="):
            kept.append(word)
    return format_command(*kept, python=format_program("python"))


def format_program(name: str) -> str:
    """Return the shortest command for a program of this environment."""
    path = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(path) else format_path(path)


def format_path(path: Path) -> str:
    """Return the path relative to the current folder, or absolute if it is not below it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
