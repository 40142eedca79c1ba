"""Figures of cells: accuracy against certified accuracy, and ours against the paper's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.report import Report
from orchestrator.analysis.tables import FilledTable
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.reporting.figures.style import (
    FAINT,
    SIZE,
    add_labels,
    add_legend,
    line_style,
    make_panels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MARGIN = "#d0d0d0"


def trade_off(filled: FilledTable, note: str) -> "Figure | None":
    """Standard against certified accuracy, row by row: ours joined, the paper's open and dotted.

    None where a table has not both, or nothing was measured.
    """
    columns = filled.columns
    if len(columns) < 2:
        return None
    first, *others = sorted(range(len(columns)), key=lambda at: columns[at].radius)
    if columns[first].radius or not _measured(filled, first, others[0]):
        return None
    figure, (axes,) = make_panels(filled.table.title, note)
    keys = []
    for place, at in enumerate(others):
        style: dict[str, Any] = {
            "color": line_style(place).colour,
            "marker": line_style(place).marker,
        }
        ours = _measured(filled, first, at)
        (line,) = axes.plot([x for _, x, _ in ours], [y for _, _, y in ours], **style)
        axes.plot(
            [row[first].published for row in filled.cells],
            [row[at].published for row in filled.cells],
            linestyle=":",
            markerfacecolor="none",
            **style,
        )
        keys.append((columns[at].title, line))
    axes.margins(x=0.12)  # room for labels
    axes.set(xlabel="standard accuracy (%)", ylabel="certified robust accuracy (%)")
    add_legend(figure, keys, "filled: measured; open: published")
    add_labels(figure, axes, _measured(filled, first, others[0]))
    return figure


def _measured(filled: FilledTable, x: int, y: int) -> list[tuple[str, float, float]]:
    """The rows that have a value in both columns, by label."""
    found = [(row[x].row, row[x].measured, row[y].measured) for row in filled.cells]
    return [(label, a, b) for label, a, b in found if a is not None and b is not None]


def paper_against_ours(report: Report) -> "Figure":
    """Every measured cell by verdict: ours over the paper's, and beside it the difference.

    About the line of equal values stands each cell's own margin, at its point the 95% interval.
    """
    figure, (values, differences) = make_panels("The paper against ours", report.experiment.note, 2)
    values.axline((0, 0), slope=1, color=FAINT, linewidth=0.8)
    differences.axhline(0, color=FAINT, linewidth=0.8)
    _add_cells(values, report, upright=True)
    keys = _add_cells(differences, report, upright=False)
    values.set(xlabel="published (%)", ylabel="measured (%)", xlim=(0, 100), ylim=(0, 100))
    differences.set(xlabel="published (%)", ylabel="measured - published (percentage points)")
    add_legend(figure, keys, "lines: 95 % interval of the true difference")
    return figure


def _add_cells(axes: "Axes", report: Report, *, upright: bool) -> list[tuple[str, Any]]:
    """The cells as values if `upright`, else as differences; returns the legend's keys."""
    cells = [cell for cell in report.cells if cell.values]
    middle = [cell.published if upright else 0.0 for cell in cells]
    bars = axes.vlines(
        [cell.published for cell in cells],
        [at - cell.margin for at, cell in zip(middle, cells, strict=True)],
        [at + cell.margin for at, cell in zip(middle, cells, strict=True)],
        color=MARGIN,
        linewidth=SIZE / 2,
    )
    keys: list[tuple[str, Any]] = [("the cell's margin", bars)]
    for place, verdict in enumerate(Verdict):
        found = [one for cell in cells if (one := report.judged[cell]).verdict is verdict]
        if found:
            points = _with_intervals(axes, found, place, upright=upright)
            keys.append((f"{verdict} ({len(found)})", points))
    return keys


def _with_intervals(
    axes: "Axes", judged: Sequence[CellVerdict], place: int, *, upright: bool
) -> "Line2D":
    colour, _, marker = line_style(place)
    at = [one.cell.published for one in judged]
    lift = at if upright else [0.0] * len(at)
    ends = [one.interval or (0.0, 0.0) for one in judged]
    axes.vlines(
        at,
        [base + low for base, (low, _) in zip(lift, ends, strict=True)],
        [base + high for base, (_, high) in zip(lift, ends, strict=True)],
        color=colour,
        linewidth=0.8,
    )
    (points,) = axes.plot(
        at,
        [base + (one.cell.difference or 0.0) for base, one in zip(lift, judged, strict=True)],
        linestyle="none",
        color=colour,
        marker=marker,
        markersize=4,
        clip_on=False,
    )
    return points
