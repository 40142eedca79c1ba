"""Figures of cells: accuracy against certified accuracy, measured against published values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.report import Report
from orchestrator.analysis.tables import FilledTable
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.reporting.figures.style import (
    GREY,
    MARKER_SIZE,
    add_labels,
    add_legend,
    line_style,
    make_panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARGIN_GREY = "#d0d0d0"


def trade_off(filled: FilledTable, note: str, *, published: bool) -> "Figure | None":
    """Return standard against certified accuracy, row by row, measured and maybe published.

    Returns None if the table lacks either column or has no measured values.
    """
    columns = filled.columns
    if len(columns) < 2:
        return None
    accuracy, *certified = sorted(range(len(columns)), key=lambda index: columns[index].radius)
    if columns[accuracy].radius or not _measured(filled, accuracy, certified[0]):
        return None
    figure, (axes,) = make_panels(filled.table.title, note)
    entries = []
    for index, column in enumerate(certified):
        color, _, marker = line_style(index)
        measured = _measured(filled, accuracy, column)
        (line,) = axes.plot(
            [x for _, x, _ in measured], [y for _, _, y in measured], color=color, marker=marker
        )
        if published:
            axes.plot(
                [row[accuracy].published for row in filled.cells],
                [row[column].published for row in filled.cells],
                linestyle=":",
                markerfacecolor="none",
                color=color,
                marker=marker,
            )
        entries.append((columns[column].title, line))
    axes.margins(x=0.12)  # room for labels
    axes.set(xlabel="standard accuracy (%)", ylabel="certified robust accuracy (%)")
    add_legend(figure, entries, "filled: measured; open: published" if published else "")
    add_labels(figure, axes, _measured(filled, accuracy, certified[0]))
    return figure


def paper_against_ours(report: Report) -> "Figure":
    """Return the measured against the published values of all cells, and their differences.

    Each cell has its margin around equality and the 95% interval at its point.
    """
    figure, (values, differences) = make_panels(
        "Measured against published values", report.experiment.note, 2
    )
    values.axline((0, 0), slope=1, color=GREY, linewidth=0.8)
    differences.axhline(0, color=GREY, linewidth=0.8)
    _add_cells(values, report, as_differences=False)
    entries = _add_cells(differences, report, as_differences=True)
    values.set(xlabel="published (%)", ylabel="measured (%)", xlim=(0, 100), ylim=(0, 100))
    differences.set(xlabel="published (%)", ylabel="measured - published (percentage points)")
    add_legend(figure, entries, "lines: 95 % interval of the true difference")
    return figure


def _measured(filled: FilledTable, x: int, y: int) -> list[tuple[str, float, float]]:
    """Return label and values of the rows that are measured in both columns."""
    rows = [(row[x].row, row[x].measured, row[y].measured) for row in filled.cells]
    return [(label, a, b) for label, a, b in rows if a is not None and b is not None]


def _add_cells(axes: "Axes", report: Report, *, as_differences: bool) -> list[tuple[str, Any]]:
    """Draw the measured cells, as differences or as values; return the legend's entries."""
    cells = [cell for cell in report.cells if cell.values]
    centers = [0.0 if as_differences else cell.published for cell in cells]
    margins = axes.vlines(
        [cell.published for cell in cells],
        [center - cell.margin for center, cell in zip(centers, cells, strict=True)],
        [center + cell.margin for center, cell in zip(centers, cells, strict=True)],
        color=MARGIN_GREY,
        linewidth=MARKER_SIZE / 2,
    )
    entries: list[tuple[str, Any]] = [("margin of the cell", margins)]
    for index, verdict in enumerate(Verdict):
        judged = [report.verdicts[cell] for cell in cells]
        matching = [one for one in judged if one.verdict is verdict]
        if matching:
            points = _add_intervals(axes, matching, index, as_differences=as_differences)
            entries.append((f"{verdict} ({len(matching)})", points))
    return entries


def _add_intervals(
    axes: "Axes", judged: Sequence[CellVerdict], index: int, *, as_differences: bool
) -> "Line2D":
    """Draw cells of one verdict as points with their intervals; return the points."""
    color, _, marker = line_style(index)
    published = [one.cell.published for one in judged]
    centers = [0.0] * len(judged) if as_differences else published
    intervals = [one.interval or (0.0, 0.0) for one in judged]
    axes.vlines(
        published,
        [center + low for center, (low, _) in zip(centers, intervals, strict=True)],
        [center + high for center, (_, high) in zip(centers, intervals, strict=True)],
        color=color,
        linewidth=0.8,
    )
    (points,) = axes.plot(
        published,
        [c + (one.cell.difference or 0.0) for c, one in zip(centers, judged, strict=True)],
        linestyle="none",
        color=color,
        marker=marker,
        markersize=4,
        clip_on=False,
    )
    return points
