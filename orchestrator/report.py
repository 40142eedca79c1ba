"""The paper's tables from the store: as the paper prints them, and beside its numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from orchestrator.spec import Column, Experiment, Row, Table
from orchestrator.store import Status, Store

Format = Literal["md", "csv", "json"]
MISSING = "–"
DECIMALS = 1  # the paper prints percent with one decimal


@dataclass(frozen=True)
class Cell:
    """One number of a table: what the paper prints and what was measured, in percent."""

    table: str
    row: str
    run: int
    column: str
    metric: str
    published: float
    measured: float | None  # mean over the seeds
    seeds: int

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percentage points."""
        return None if self.measured is None else self.measured - self.published


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper with what was measured for it."""

    table: Table
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell, ...], ...]  # a tuple per row
    unsound: tuple[str, ...] = ()  # a line per run that is left out


def fill_tables(experiment: Experiment, store: Store) -> list[FilledTable]:
    """Every table with the last epoch of the profile's finished runs.

    A run counts if it was trained with exactly the profile's settings: with the seed of the
    file, or as one of its replicates. Runs whose network is not sound are left out and named.
    """
    wanted = {run.id: run for run in experiment.runs}
    keys: dict[int, list[str]] = {run_id: [] for run_id in wanted}
    unsound: dict[int, list[str]] = {run_id: [] for run_id in wanted}
    for stored in store.runs():
        run = wanted.get(stored.run_id)
        if run and stored.digest == run.train.digest() and run.is_replicate(stored.seed):
            keys[stored.run_id].append(stored.key)
            if stored.status is Status.UNSOUND:
                line = f"Run {run.id} with seed {stored.seed} is left out, unsound: {stored.error}"
                unsound[run.id].append(line)
    final = store.final([key for found in keys.values() for key in found])
    measured = {
        run_id: [final[key] for key in found if key in final] for run_id, found in keys.items()
    }
    return [
        FilledTable(
            table,
            experiment.columns,
            tuple(
                _cells(table, row, experiment.columns, measured.get(row.run, []))
                for row in table.rows
            ),
            tuple(line for row in table.rows for line in unsound.get(row.run, [])),
        )
        for table in experiment.tables
    ]


def newest_profile(store: Store, profiles: Sequence[str]) -> str:
    """The one of the profiles that was trained last, the first of them if none was."""
    known = [run for run in store.runs() if run.profile in profiles]
    newest = max(known, key=lambda run: run.created_at, default=None)
    return newest.profile if newest else profiles[0]


def _cells(
    table: Table, row: Row, columns: Sequence[Column], results: Sequence[Mapping[str, float]]
) -> tuple[Cell, ...]:
    cells = []
    for column, published in zip(columns, row.published, strict=True):
        values = [100 * result[column.metric] for result in results if column.metric in result]
        cells.append(
            Cell(
                table=table.id,
                row=row.label,
                run=row.run,
                column=column.title,
                metric=column.metric,
                published=published,
                measured=fmean(values) if values else None,
                seeds=len(values),
            )
        )
    return tuple(cells)


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
    """Write the tables to `folder/<profile>/tables.<form>`, aside and then renamed."""
    path = folder / experiment.profile / f"tables.{form}"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(render(experiment, tables, form), encoding="utf-8")
    aside.replace(path)
    return path
