"""Rows as a table of text."""

from collections.abc import Container, Iterable, Sequence


def grid(
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
