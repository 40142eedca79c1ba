"""What the store holds, where else people look: MLflow, and the view `v_cells`."""

from collections.abc import Iterable
from pathlib import Path

from orchestrator.cells import note_cells
from orchestrator.report import make_report, render
from orchestrator.spec import Experiment
from orchestrator.specfile import SpecFile
from orchestrator.store import Store
from orchestrator.tracking import Tracker, TrackingError, tracking_uri


def tracker_of(file: SpecFile) -> Tracker:
    """MLflow for the runs of a file: beside it, or where `$MLFLOW_TRACKING_URI` says."""
    folder = file.document.path.parent
    return Tracker(tracking_uri(folder), file.file.name, folder / "mlruns")


def show_taken(store: Store, file: SpecFile, results: Path, keys: Iterable[str]) -> str | None:
    """Show runs that were taken from elsewhere; returns what MLflow had against it, or None.

    Raises: StoreError.
    """
    for profile in file.profiles:
        note_cells(file.experiment(profile), store)
    tracker = tracker_of(file)
    try:
        tracker.send(store, keys)
        publish_all(tracker, store, file, results)
    except TrackingError as error:
        return f"{error}\nThe store has everything; `sync` sends it to MLflow."
    return None


def publish(tracker: Tracker, store: Store, experiment: Experiment) -> None:
    """Attach the tables of one profile as they are now. Raises: TrackingError, StoreError."""
    tracker.attach(store, experiment.profile, render(make_report(experiment, store), "md"))


def publish_all(tracker: Tracker, store: Store, file: SpecFile, results: Path) -> None:
    """Attach the tables of every profile that the store holds runs of.

    Those of a profile that is not in the file, as with `--set`, are taken as they were written
    last, if they were. Raises: TrackingError, StoreError.
    """
    for profile in sorted({run.profile for run in store.runs()}):
        written = results / profile / "tables.md"
        if profile in file.profiles:
            publish(tracker, store, file.experiment(profile))
        elif written.is_file():
            tracker.attach(store, profile, written.read_text(encoding="utf-8"))
