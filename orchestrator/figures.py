"""The report's pictures, each as PNG and SVG: readable in print and for the colour-blind."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cells import FilledTable, runs_of
from orchestrator.margins import read_margins, share
from orchestrator.report import Report
from orchestrator.store import Status, Store, StoredRun
from orchestrator.verdicts import Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
OF_A_TABLE = ("curves", "training", "trade-off")  # the names before the table's ID
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FURTHEST = 1.5  # radius of the curves
STEPS = 151
STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "aol",  # the same figure is the same file
}
PANELS = (
    ("train_loss", "training loss", 1.0),
    ("accuracy", "standard accuracy (%)", 100.0),
    ("cra_36", "CRA 36/255 (%)", 100.0),
)


def draw_figures(
    report: Report,
    store: Store,
    folder: Path,
    formats: Sequence[str] = FORMATS,
    *,
    overall: bool = True,
) -> list[Path]:
    """Write every figure that has something to show into `folder`; returns the PNGs.

    Each is of one table, but for those of all tables together, which are drawn if `overall`.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in _figures(report, store, overall=overall):
            if note := report.experiment.note:
                figure.supxlabel(note, fontsize=7, color="#777777")
            for form in formats:
                figure.savefig(
                    folder / f"{name}.{form}",
                    metadata={"Date": None} if form == "svg" else {"Software": None},
                )
            written.append(folder / f"{name}.png")
            mpl.pyplot.close(figure)
    return written


def by_run(report: Report, drawn: Sequence[Path]) -> dict[int, list[Path]]:
    """By run ID those of the figures that are of the tables it is in."""
    found: dict[int, list[Path]] = {}
    for filled in report.tables:
        names = {f"{kind}-{filled.table.id}" for kind in OF_A_TABLE}
        shown = [path for path in drawn if path.stem in names]
        for run in {row.run for row in filled.table.rows}:
            found.setdefault(run, []).extend(shown)
    return found


def _figures(report: Report, store: Store, *, overall: bool) -> Iterator[tuple[str, "Figure"]]:
    runs = runs_of(report.experiment, store)
    for filled in report.tables:
        rows = {row.run: runs.get(row.run, []) for row in filled.table.rows}
        if any(run.status is Status.DONE for found in rows.values() for run in found):
            yield f"curves-{filled.table.id}", _curves(filled, rows, store)
        if any(run.epoch for found in rows.values() for run in found):
            yield f"training-{filled.table.id}", _training(filled, rows, store)
        if filled.table.header and any(cell.values for row in filled.cells for cell in row):
            yield f"trade-off-{filled.table.id}", _trade_off(filled)
    if overall and any(cell.values for cell in report.cells):
        yield "paper-against-ours", _scatter(report)


def _curves(filled: FilledTable, runs: dict[int, list[StoredRun]], store: Store) -> "Figure":
    """Certified accuracy against the radius: mean and range of the seeds, the paper's points."""
    import numpy as np

    figure, axes = _axes(filled.table.title)
    radii = np.linspace(0, FURTHEST, STEPS)
    for place, row in enumerate(filled.table.rows):
        stored = [store.margins(run.key) for run in runs[row.run] if run.status is Status.DONE]
        curves = [
            [100 * share(read_margins(one), float(radius)) for radius in radii]
            for one in stored
            if one
        ]
        colour = COLOURS[place % len(COLOURS)]
        if curves:
            axes.plot(
                radii,
                np.mean(curves, axis=0),
                color=colour,
                linestyle=DASHES[place % len(DASHES)],
                label=row.label,
            )
            axes.fill_between(
                radii, np.min(curves, axis=0), np.max(curves, axis=0), color=colour, alpha=0.2
            )
        axes.plot(
            [column.radius for column in filled.columns],
            row.published,
            linestyle="none",
            color=colour,
            marker=MARKERS[place % len(MARKERS)],
            markerfacecolor="none",
            clip_on=False,
            label=f"{row.label}, published",
        )
    axes.set(xlabel="radius ε (L2, pixels in [0, 1])", ylabel="certified robust accuracy (%)")
    axes.set(xlim=(0, FURTHEST), ylim=(0, None))
    axes.legend(fontsize=7, ncols=2)
    return figure


def _training(filled: FilledTable, runs: dict[int, list[StoredRun]], store: Store) -> "Figure":
    """Loss, accuracy and CRA by epoch; dotted where the learning rate drops."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(PANELS), figsize=(10, 3.4), layout="constrained")
    figure.suptitle(filled.table.title)
    for place, row in enumerate(filled.table.rows):
        for number, run in enumerate(runs[row.run]):
            epochs = store.metrics(run.key)
            for axes, (metric, _, scale) in zip(panels, PANELS, strict=True):
                points = [(n, scale * v[metric]) for n, v in epochs.items() if metric in v]
                axes.plot(
                    *zip(*points, strict=True) if points else ((), ()),
                    color=COLOURS[place % len(COLOURS)],
                    linestyle=DASHES[place % len(DASHES)],
                    linewidth=1,
                    label=row.label if not number else None,
                )
            if not place and not number:
                _mark_drops(list(panels), epochs)
    for axes, (_, label, _) in zip(panels, PANELS, strict=True):
        axes.set(xlabel="epoch", ylabel=label)
    panels[0].set_yscale("log")
    panels[-1].legend(fontsize=7)
    return figure


def _mark_drops(panels: list["Axes"], epochs: dict[int, dict[str, float]]) -> None:
    rates = [(epoch, values.get("learning_rate")) for epoch, values in sorted(epochs.items())]
    for (before, rate), (_, following) in pairwise(rates):
        if rate is not None and following is not None and following < rate:
            for axes in panels:
                axes.axvline(before + 0.5, color="#777777", linestyle=":", linewidth=1)


def _trade_off(filled: FilledTable) -> "Figure":
    """Standard accuracy against certified accuracy, row by row: ours joined, the paper's open."""
    figure, axes = _axes(filled.table.title)
    for place, column in enumerate(filled.columns[1:], start=1):
        style: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place]}
        ours = [(row[0].measured, row[place].measured) for row in filled.cells]
        points = [(x, y) for x, y in ours if x is not None and y is not None]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), label=column.title, **style)
        axes.plot(
            [row[0].published for row in filled.cells],
            [row[place].published for row in filled.cells],
            linestyle=":",
            markerfacecolor="none",
            label=f"{column.title}, published",
            **style,
        )
    for row in filled.cells:
        if row[0].measured is not None and row[1].measured is not None:
            axes.annotate(
                row[0].row,
                (row[0].measured, row[1].measured),
                textcoords="offset points",
                xytext=(4, 4),
                fontsize=7,
            )
    axes.set(xlabel="standard accuracy (%)", ylabel="certified robust accuracy (%)")
    axes.legend(fontsize=7, ncols=2)
    return figure


def _scatter(report: Report) -> "Figure":
    """Every measured cell, ours against the paper's, with the margin around the identity."""
    figure, axes = _axes("The paper against ours")
    margin = report.experiment.reproduction.margin
    axes.fill_between(
        [0, 100], [-margin, 100 - margin], [margin, 100 + margin], color="#999999", alpha=0.3
    )
    axes.plot([0, 100], [0, 100], color="#777777", linewidth=0.8)
    for place, verdict in enumerate(Verdict):
        cells = [cell for cell in report.cells if report.judged[cell].verdict is verdict]
        points = [(cell.published, cell.measured) for cell in cells if cell.measured is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                linestyle="none",
                color=COLOURS[place],
                marker=MARKERS[place],
                markersize=4,
                clip_on=False,
                label=f"{verdict} ({len(points)})",
            )
    axes.set(xlabel="published (%)", ylabel="measured (%)", xlim=(0, 100), ylim=(0, 100))
    axes.set_aspect("equal")
    axes.legend(fontsize=8)
    return figure


def _axes(title: str) -> tuple["Figure", "Axes"]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5), layout="constrained")
    axes.set_title(title)
    return figure, axes
