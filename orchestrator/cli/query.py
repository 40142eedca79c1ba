"""`query`: print the result of a SQL query on the store."""

import math
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import typer

from orchestrator.cli.options import JsonOption, StoreOptions, command
from orchestrator.errors import RequestError
from orchestrator.formatting import format_table, pluralize, to_json


@command
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="A query, for example of v_final.")],
    options: StoreOptions,
    as_json: JsonOption = False,
) -> None:
    """Print the result of a SQL query.

    The store is opened read-only.
    """
    columns, rows = options.open_store().query(sql)
    typer.echo((result_json if as_json else result_text)(columns, rows))


def result_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table with floats in six digits and the lengths of byte strings."""
    by_column = zip(columns, zip(*rows, strict=True), strict=True) if rows else ()
    texts = {
        title
        for title, values in by_column
        if not all(isinstance(value, int | float | None) for value in values)
    }
    table = [[_table_value(value) for value in row] for row in rows]
    return format_table(table, columns, left=texts)


def _table_value(value: object) -> object:
    if isinstance(value, bytes):
        return f"<{pluralize(len(value), 'byte')}>"
    return f"{value:g}" if isinstance(value, float) else value


def result_json(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a record per row, with bytes in Base64 and infinities as text.

    Raises: RequestError if two columns have the same name.
    """
    if repeated := [name for name, count in Counter(columns).items() if count > 1]:
        raise RequestError(f"--json: two columns are called {repeated[0]!r}; rename one with AS")
    records = [dict(zip(columns, map(_json_value, row), strict=True)) for row in rows]
    return to_json(records, default=str)


def _json_value(value: object) -> object:
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
