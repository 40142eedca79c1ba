"""The figures of a report and their files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.analysis.claims import judge_by_epoch
from orchestrator.analysis.report import Report
from orchestrator.analysis.tables import runs_of
from orchestrator.reporting.figures.claims import claims_by_epoch, claims_figure
from orchestrator.reporting.figures.curves import certified_curves, training_curves
from orchestrator.reporting.figures.scatter import paper_against_ours, trade_off
from orchestrator.reporting.figures.spectra import singular_values
from orchestrator.reporting.figures.style import RC_PARAMS
from orchestrator.store import Status, Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
SPECTRA = "singular-values-"  # name before the run's ID
CLAIMS = "claims"  # name of the figure of all claims
CLAIMS_BY_EPOCH = "claims-by-epoch"
PAPER_AGAINST_OURS = "paper-against-ours"


def draw_figures(
    report: Report, store: Store, folder: Path, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write every figure that has data into `folder` and return the paths of the PNGs."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with mpl.rc_context(RC_PARAMS):
        for name, figure in figures_of(report, store):
            for form in formats:
                figure.savefig(
                    folder / f"{name}.{form}",
                    metadata={"Date": None} if form == "svg" else {"Software": None},
                )
            drawn.append(folder / f"{name}.png")
    return drawn


def figures_of(report: Report, store: Store) -> Iterator[tuple[str, "Figure"]]:
    """Yield every figure that has data, with its name."""
    experiment, note = report.experiment, report.experiment.note
    if any(judged.assessment for judged in report.claims):
        yield from _claims_figures(report, store)
    stored = runs_of(experiment, store)
    for filled in report.tables:
        rows = {row.run: stored.get(row.run, []) for row in filled.table.rows}
        if any(run.status is Status.DONE for runs in rows.values() for run in runs):
            figure = certified_curves(filled, rows, store, note, published=experiment.comparable)
            yield f"curves-{filled.table.id}", figure
        if any(run.epoch for runs in rows.values() for run in runs):
            yield f"training-{filled.table.id}", training_curves(filled, rows, store, note)
        if filled.table.header:
            traded = trade_off(filled, note, published=experiment.comparable)
            if traded:
                yield f"trade-off-{filled.table.id}", traded
    if experiment.comparable and any(cell.values for cell in report.cells):
        yield PAPER_AGAINST_OURS, paper_against_ours(report)
    for run_id, runs in stored.items():
        first = next((run for run in runs if run.status is Status.DONE), None)
        if first and (spectra := singular_values(first, note)):
            yield f"{SPECTRA}{run_id}", spectra


def _claims_figures(report: Report, store: Store) -> Iterator[tuple[str, "Figure"]]:
    note = report.experiment.note
    yield CLAIMS, claims_figure(report.claims, note)
    by_epoch = judge_by_epoch(report.experiment, store)
    if len(by_epoch) > 1:
        yield CLAIMS_BY_EPOCH, claims_by_epoch(report.claims, by_epoch, note)


def files_of(drawn: Sequence[Path]) -> list[Path]:
    """Return the files of figures in every format, given their PNGs."""
    return [path.with_suffix(f".{form}") for path in drawn for form in FORMATS]
