"""The paper's tables from the store: as the paper prints them, and beside its numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from orchestrator.cells import Cell, FilledTable
from orchestrator.spec import Experiment

Format = Literal["md", "csv", "json"]
MISSING = "–"
DECIMALS = 1  # the paper prints percent with one decimal


class ReportError(Exception):
    """The tables cannot be written; the store has everything."""

    exit_code = 1


def shown(value: float | None, *, signed: bool = False) -> str:
    """A percentage as the paper prints it, – where there is none."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}z.{DECIMALS}f}"  # z: no -0.0


def markdown(experiment: Experiment, tables: Sequence[FilledTable]) -> str:
    """All tables twice: as the paper prints them, and side by side with its values."""
    lines = [f"# {experiment.name}: results of the profile `{experiment.profile}`", ""]
    if experiment.note:
        lines += [f"> **{experiment.note}**", ""]
    lines += [
        f"Source of the published values: {experiment.source}.",
        "",
        "Percent of the test images after the last epoch. CRA ε: certified robust accuracy, the",
        "share of images that no change of L2 norm ε can turn wrong (pixels in [0, 1]). "
        f"{MISSING}: not there yet.",
        "",
        "## As the paper prints them",
        "",
    ]
    for filled in tables:
        lines += [f"### {_title(filled, experiment)}", "", _as_printed(filled), ""]
    lines += ["## Beside the published values", "", "measured / published (difference)", ""]
    for filled in tables:
        lines += [f"### {_title(filled, experiment)}", "", _side_by_side(filled), ""]
    return "\n".join(lines)


def _title(filled: FilledTable, experiment: Experiment) -> str:
    watermark = f" — {experiment.note.partition(':')[0]}" if experiment.note else ""
    return filled.table.title + watermark


def _as_printed(filled: FilledTable) -> str:
    return _grid(filled, [[shown(cell.measured) for cell in row] for row in filled.cells])


def _side_by_side(filled: FilledTable) -> str:
    return _grid(filled, [[_compared(cell) for cell in row] for row in filled.cells])


def _compared(cell: Cell) -> str:
    measured = shown(cell.measured)
    if cell.measured is None:
        return f"{measured} / {shown(cell.published)}"
    seeds = f", {cell.seeds} seeds" if cell.seeds > 1 else ""
    return f"{measured} / {shown(cell.published)} ({shown(cell.difference, signed=True)}{seeds})"


def _grid(filled: FilledTable, texts: Sequence[Sequence[str]]) -> str:
    from tabulate import tabulate

    headers = [filled.table.header, *(column.title for column in filled.columns), "Run ID"]
    rows = [
        [row.label, *cells, str(row.run)]
        for row, cells in zip(filled.table.rows, texts, strict=True)
    ]
    alignment = ["left", *("right" for _ in headers[1:])]
    grid = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=alignment)
    return "\n\n".join([grid, *filled.unsound])


def as_records(tables: Sequence[FilledTable]) -> list[dict[str, Any]]:
    """One plain record per cell."""
    return [
        {
            "table": cell.table,
            "row": cell.row,
            "run_id": cell.run,
            "column": cell.column,
            "metric": cell.metric,
            "published": cell.published,
            "measured": cell.measured,
            "difference": cell.difference,
            "seeds": cell.seeds,
        }
        for filled in tables
        for row in filled.cells
        for cell in row
    ]


def render(experiment: Experiment, tables: Sequence[FilledTable], form: Format) -> str:
    """The tables as markdown, CSV or JSON text."""
    if form == "md":
        return markdown(experiment, tables)
    if form == "json":
        return json.dumps(
            {
                "experiment": experiment.name,
                "profile": experiment.profile,
                "note": experiment.note,
                "unsound": sorted({line for filled in tables for line in filled.unsound}),
                "cells": as_records(tables),
            },
            indent=2,
            ensure_ascii=False,
        )
    import pandas as pd

    return pd.DataFrame(as_records(tables)).to_csv(index=False)


def write(
    experiment: Experiment, tables: Sequence[FilledTable], folder: Path, form: Format
) -> Path:
    """Write the tables to `folder/<profile>/tables.<form>`, aside and then renamed.

    Raises: ReportError.
    """
    path = folder / experiment.profile / f"tables.{form}"
    aside = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(render(experiment, tables, form), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise ReportError(f"{path}: cannot be written: {error}; choose other --results") from error
    return path
