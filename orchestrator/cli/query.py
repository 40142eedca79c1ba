"""What a query found, for people and as JSON."""

import math
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrator.cli.options import (
    SPEC,
    JsonOption,
    ResultsOption,
    SpecOption,
    StoreOption,
    app,
    open_store,
)
from orchestrator.errors import RequestError
from orchestrator.formatting import format_table, pluralize, to_json


def found_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table: floats in six digits, of bytes only how many there are."""
    by_column = zip(columns, zip(*rows, strict=True), strict=True) if rows else ()
    words = {
        title
        for title, values in by_column
        if not all(isinstance(value, int | float | None) for value in values)
    }
    return format_table([[_shown(value) for value in row] for row in rows], columns, left=words)


def _shown(value: object) -> object:
    if isinstance(value, bytes):
        return f"<{pluralize(len(value), 'byte')}>"
    return f"{value:g}" if isinstance(value, float) else value


def found_json(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A record per row; bytes are in Base64, and what JSON has no number for is a text.

    Raises: RequestError if two columns have one name, of which a record would have one only.
    """
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise RequestError(f"--json: two columns are called {twice[0]!r}; name one with AS")
    records = [dict(zip(columns, map(_plain, row), strict=True)) for row in rows]
    return to_json(records, default=str)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="What to read; v_final is a start.")],
    spec: SpecOption = SPEC,
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what SQL finds in the store; nothing can be written."""
    from orchestrator.cli.query import found_json, found_text

    columns, rows = open_store(spec, results, store).query(sql)
    typer.echo((found_json if as_json else found_text)(columns, rows))
