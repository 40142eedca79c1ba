"""Which figures a report has, and their files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.report import Report
from orchestrator.analysis.tables import runs_of
from orchestrator.reporting.figures.curves import certified_curves, training_curves
from orchestrator.reporting.figures.scatter import paper_against_ours, trade_off
from orchestrator.reporting.figures.style import STYLE
from orchestrator.store import Status, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
OVERALL = "paper-against-ours"  # the name of the figure of all tables together
OF_A_TABLE = ("curves", "training", "trade-off")  # the names before the table's ID


def draw_figures(
    report: Report, store: Store, folder: Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write every figure that has something to show into `folder`; returns the PNGs.

    Each is of one table, but for the one that is `OVERALL`.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in figures_of(report, store):
            for form in formats:
                figure.savefig(
                    folder / f"{name}.{form}",
                    metadata={"Date": None} if form == "svg" else {"Software": None},
                )
            written.append(folder / f"{name}.png")
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


def files_of(drawn: Sequence[Path]) -> list[Path]:
    """The files of figures in every format, from their PNGs."""
    return [path.with_suffix(f".{form}") for path in drawn for form in FORMATS]


def figures_of(report: Report, store: Store) -> Iterator[tuple[str, "Figure"]]:
    """Every figure that has something to show, with its name, in matplotlib's present style."""
    note = report.experiment.note
    runs = runs_of(report.experiment, store)
    for filled in report.tables:
        rows = {row.run: runs.get(row.run, []) for row in filled.table.rows}
        if any(run.status is Status.DONE for found in rows.values() for run in found):
            yield f"curves-{filled.table.id}", certified_curves(filled, rows, store, note)
        if any(run.epoch for found in rows.values() for run in found):
            yield f"training-{filled.table.id}", training_curves(filled, rows, store, note)
        if filled.table.header and (drawn := trade_off(filled, note)):
            yield f"trade-off-{filled.table.id}", drawn
    if any(cell.values for cell in report.cells):
        yield OVERALL, paper_against_ours(report)
