"""The tables of a profile as artifacts of its runs in MLflow."""

from pathlib import Path

from orchestrator.report import make_report, render
from orchestrator.spec import Experiment
from orchestrator.specfile import SpecFile
from orchestrator.store import Store
from orchestrator.tracking import Tracker


def publish(tracker: Tracker, store: Store, experiment: Experiment) -> None:
    """Attach the tables of one profile as they are now. Raises: TrackingError, StoreError."""
    tracker.attach(store, experiment.profile, render(make_report(experiment, store), "md"))


def publish_all(tracker: Tracker, store: Store, file: SpecFile, results: Path) -> None:
    """Attach the tables of every profile that the store holds runs of.

    Those of a profile that is not in the file, as with `--set`, are taken as they were written
    last, if they were. Raises: TrackingError, StoreError.
    """
    for profile in store.profiles():
        written = results / profile / "tables.md"
        if profile in file.profiles:
            publish(tracker, store, file.experiment(profile))
        elif written.is_file():
            tracker.attach(store, profile, written.read_text(encoding="utf-8"))
