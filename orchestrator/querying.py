"""What a query found, for people and as JSON."""

import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence

from orchestrator.grid import grid
from orchestrator.numbers import number_of


class ColumnsError(Exception):
    """What a query found cannot be written as JSON: one line."""

    exit_code = 2


def found_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table: floats in six digits, of bytes only how many there are."""
    by_column = zip(columns, zip(*rows, strict=True), strict=True) if rows else ()
    words = {
        title
        for title, values in by_column
        if not all(isinstance(value, int | float | None) for value in values)
    }
    return grid([[_shown(value) for value in row] for row in rows], columns, left=words)


def _shown(value: object) -> object:
    if isinstance(value, bytes):
        return f"<{number_of(len(value), 'byte')}>"
    return f"{value:g}" if isinstance(value, float) else value


def found_json(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A record per row; bytes are in Base64, and what JSON has no number for is a text.

    Raises: ColumnsError if two columns have one name, of which a record would have one only.
    """
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise ColumnsError(f"--json: two columns are called {twice[0]!r}; name one with AS")
    records = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
    return json.dumps(records, indent=2, ensure_ascii=False, default=str)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
