"""Publishing tables and figures in MLflow."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from orchestrator.analysis.report import Report, make_report
from orchestrator.errors import StoreError, TrackingError
from orchestrator.reporting.figures import draw_figures, files_of
from orchestrator.reporting.render import render
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store
from orchestrator.store.cells import store_published_cells
from orchestrator.tracking import Tracker, tracker_for


def publish_imported(
    store: Store, file: SpecFile, results: Path, keys: Iterable[str]
) -> str | None:
    """Send imported runs, tables and figures to MLflow; return what went wrong, or None.

    Raises: StoreError.
    """
    for profile in file.profiles:
        store_published_cells(file.experiment(profile), store)
    tracker = tracker_for(file.path, file.file.name, results)
    try:
        tracker.send(store, keys)
        publish_all(tracker, store, file, results)
    except TrackingError as error:
        return f"{error}\nThe store is complete; `sync` sends it to MLflow."
    return None


def publish(tracker: Tracker, store: Store, experiment: Experiment) -> None:
    """Attach the current tables of a profile, then its figures.

    Raises: TrackingError, StoreError.
    """
    report = make_report(experiment, store)
    _attach_tables(tracker, report)
    _attach_figures(tracker, store, report)


def publish_all(tracker: Tracker, store: Store, file: SpecFile, results: Path) -> None:
    """Attach the tables of every profile that has runs, then their figures.

    For a profile that is not in the file, as with `--set`, the tables are those last written to
    `results`. Raises: TrackingError, StoreError.
    """
    profiles = store.profiles()
    reports = [
        make_report(file.experiment(name), store) for name in profiles if name in file.profiles
    ]
    for report in reports:
        _attach_tables(tracker, report)
    for profile in profiles:
        written = results / profile / "tables.md"
        if profile not in file.profiles and written.is_file():
            tracker.attach_tables(profile, written.read_text(encoding="utf-8"))
    for report in reports:
        _attach_figures(tracker, store, report)


def _attach_tables(tracker: Tracker, report: Report) -> None:
    tracker.attach_tables(report.experiment.profile, render(report, "md"))


def _attach_figures(tracker: Tracker, store: Store, report: Report) -> None:
    try:
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_figures(report, store, Path(folder))
            tracker.attach_figures(report.experiment.profile, files_of(drawn))
    except (TrackingError, StoreError):
        raise
    except Exception as error:  # of fonts, numbers or disks; the runs themselves are fine
        raise TrackingError(f"the figures cannot be drawn: {error}") from error
