"""A report that was written before, compared with what the results give now."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from orchestrator.cells import Cell
from orchestrator.report import SCHEMA, Report, render

JSON, MARKDOWN = "tables.json", "tables.md"
WORDING = "summary"  # another version of the program may put it in other words
ADDED = ("diverged",)  # fields that another version may not have written
DATA = ("|", ">")  # how lines of markdown begin that are tables or the profile's note
NUMBER = re.compile(r"[-−+±]?\d+(?:[.,]\d+)*")
RELATIVE, ABSOLUTE = 1e-6, 1e-9  # another machine's arithmetic rounds otherwise


class _UnreadableError(Exception):
    """A file of the report cannot be read."""


@dataclass(frozen=True)
class Reread:
    """What a report says: the cells' values, what contradicts the results, what is not comparable.

    `values` lacks the cells that have none.
    """

    values: Mapping[Cell, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def reread(folder: Path, report: Report, *, same_program: bool) -> Reread:
    """Compare the tables in a folder with a report made anew.

    Whatever program wrote them, tables and numbers must be equal. `same_program` says that it was
    this very one, so that all words must be equal, too.
    """
    try:
        written = json.loads(_text(folder, JSON))
        markdown = _text(folder, MARKDOWN)
    except _UnreadableError as error:
        return Reread(problems=(str(error),))
    except (ValueError, RecursionError) as error:
        return Reread(problems=(f"{folder.name}/{JSON}: is no JSON: {error}",))
    if not isinstance(written, dict) or written.get("schema") != SCHEMA:
        return Reread(problems=(f"{folder.name}/{JSON}: is not of the schema {SCHEMA}",))
    fresh = json.loads(render(report, "json"))
    cells, given = fresh.pop("cells"), written.get("cells")
    if not isinstance(given, list) or _names(given) != _names(cells):
        return Reread(problems=(f"{folder.name}/{JSON}: its cells are not those of the tables",))
    problems = [
        f"{folder.name}/{JSON}: {name} is {written.get(name)!r}, the results give {value!r}"
        for name, value in fresh.items()
        if name != WORDING and written.get(name) != value
        if same_program or name in written or name not in ADDED
    ]
    for cell, record, now in zip(report.cells, given, cells, strict=True):
        if unlike := list(_unlike(record, now)):
            problems.append(f"{folder.name}/{JSON}: {cell.name}: {', '.join(unlike)}")
    texts = {
        f"{folder.name}/{JSON}: {WORDING}": (str(written.get(WORDING)), fresh[WORDING]),
        f"{folder.name}/{MARKDOWN}": (markdown, render(report, "md")),
    }
    otherwise = []
    for name, (said, now) in texts.items():
        if _facts(said) != _facts(now) or (same_program and said != now):
            problems.append(f"{name}: is not what the results give")
        elif said != now:
            otherwise.append(name)
    values = zip(report.cells, (record.get("measured") for record in given), strict=True)
    return Reread(
        {cell: value for cell, value in values if _is_number(value)},
        tuple(problems),
        tuple(f"{name}: is worded by another version of the program" for name in otherwise),
    )


def _text(folder: Path, name: str) -> str:
    """A file of the report. Raises: _UnreadableError, which names it as the bundle does."""
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise _UnreadableError(f"{folder.name}/{name}: cannot be read: {error.strerror}") from error
    except UnicodeError as error:
        raise _UnreadableError(f"{folder.name}/{name}: is no text: {error}") from error


def _facts(text: str) -> list[str]:
    """What no wording changes, in its order: lines of tables, and the numbers of all others."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0].startswith(DATA):
            found.append(" ".join(words))
        else:
            found += NUMBER.findall(line)
    return found


def _names(records: list[Any]) -> list[tuple[Any, ...]]:
    """Which cells these are, as far as they are records of cells."""
    return [
        (one.get("table"), one.get("row"), one.get("column")) if isinstance(one, dict) else ()
        for one in records
    ]


def _unlike(record: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a cell that are not what they are now."""
    for name, value in now.items():
        said = record.get(name)
        if not (said == value or (_is_number(said) and _is_number(value) and _close(said, value))):
            yield f"{name} is {said!r}, the results give {value!r}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(said: float, value: float) -> bool:
    return math.isclose(said, value, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
