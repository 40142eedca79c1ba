"""Text for people and programs: percentages, plurals, durations, tables, JSON."""

import json
import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

MISSING = "–"
DECIMALS = 1  # the paper prints percent with one decimal
LENGTHS = ((90.0, 1, "s"), (5400.0, 60, "min"), (172800.0, 3600, "h"), (math.inf, 86400, "days"))


def format_percent(value: float | None, *, signed: bool = False) -> str:
    """A percentage as the paper prints it, – where there is none."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}z.{DECIMALS}f}"  # z: no -0.0


def pluralize(count: float, one: str, many: str = "") -> str:
    """`1 seed`, `2 seeds`; `many` is what does not get its plural from an s at the end."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {one if count == 1 else many or f'{one}s'}"


def to_json(value: Any, **options: Any) -> str:
    """Return plain values as indented JSON in UTF-8; `options` are those of `json.dumps`."""
    return json.dumps(value, indent=2, ensure_ascii=False, **options)


def format_significant(value: float) -> str:
    """A number that is not known better than to two digits: 0.00033, 3.3, 33; whole ones all."""
    if not value:
        return "0"
    rounded = float(f"{value:.1e}")
    decimals = 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:,.{max(0, decimals)}f}"


def format_duration(seconds: float | None, *, rough: bool = False) -> str:
    """A length of time as people say it: 1.2 s, 12 min, 3.5 h, 40 days; of one digit if `rough`."""
    if seconds is None:
        return MISSING
    unit, name = next((unit, name) for most, unit, name in LENGTHS if seconds < most)
    length = seconds / unit
    if rough:
        length = float(f"{length:.0e}")
    return f"{round(length, 1):g} {name}" if length < 10 else f"{length:.0f} {name}"


def format_table(
    rows: Iterable[Sequence[object]],
    titles: Sequence[str],
    *,
    left: Container[str],
    form: str = "simple",
) -> str:
    """A table with the values as they stand; columns of the titles in `left` are flush left.

    `form` is one of tabulate's formats.
    """
    from tabulate import tabulate

    align = ["left" if title in left else "right" for title in titles]
    return str(tabulate(rows, titles, tablefmt=form, disable_numparse=True, colalign=align))


def with_note(note: str, text: str) -> str:
    """A text for people under its profile's note: its numbers are not to be taken for others."""
    return f"{note}\n\n{text}" if note else text
