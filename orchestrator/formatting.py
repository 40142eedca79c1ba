"""Formatting of percentages, counts, durations, tables, JSON, paths and commands."""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Container, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from aol.text import is_printable, printable
from orchestrator.masking import has_secret, mask_secrets

MISSING = "–"
DECIMALS = 1  # the paper prints percentages with one decimal
VARIABLES = {"--store": "AOL_STORE"}  # by the option whose default is their value
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
    safe = [[printable(one) if isinstance(one, str) else one for one in row] for row in rows]
    titles = list(map(printable, headers))
    return str(tabulate(safe, titles, tablefmt=style, disable_numparse=True, colalign=align))


def with_note(note: str, text: str) -> str:
    """Return the text below the note of its profile, which qualifies the numbers in it."""
    return f"{note}\n\n{text}" if note else text


def to_json(value: Any, **options: Any) -> str:
    """Return plain values as indented JSON in UTF-8; `options` are those of `json.dumps`."""
    text = json.dumps(value, indent=2, ensure_ascii=False, **options)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        one if one == "\n" or is_printable(one) else json.dumps(one)[1:-1] for one in text
    )


def format_command(*words: object, python: str = "python") -> str:
    """Return a command of this program, quoted for a shell.

    An option's value with a password is replaced by its environment variable: "$AOL_STORE".
    """
    texts = [python, "-m", "orchestrator", *map(str, words)]
    return " ".join(
        _quote_secret(before, word) if has_secret(word) else shlex.quote(word)
        for before, word in pairwise(["", *texts])
    )


def _quote_secret(before: str, word: str) -> str:
    """Return the environment variable of an option in place of its value."""
    name, equals, _ = word.partition("=") if word.startswith("--") else (before, "", "")
    if name not in VARIABLES:
        return shlex.quote(mask_secrets(word))
    return f'{name}="${VARIABLES[name]}"' if equals else f'"${VARIABLES[name]}"'


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
