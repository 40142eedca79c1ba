"""Sends what the store holds to MLflow."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aol.errors import first_line
from orchestrator.errors import StoreError, TrackingError
from orchestrator.store import Store, StoredRun
from orchestrator.tracking.mapping import (
    CREATED_TAG,
    KEY_TAG,
    NAME_LENGTH,
    batches,
    milliseconds,
    run_name,
    send_settings,
    send_state,
    settled_epochs,
    shown_epochs,
    tags_of,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

TABLES_TAG = "aol.tables"  # a digest of the tables that were attached last
TABLES_FILE = "tables/tables.md"
FIGURES_TAG = "aol.figures"  # a digest of the run's own figures
OVERALL_TAG = "aol.figures.overall"  # apart: it changes with every run, and the others need not
FIGURES_FOLDER = "figures"


def tracking_uri(folder: Path) -> str:
    """`$MLFLOW_TRACKING_URI`, or mlflow.db in the folder, where a plain `mlflow ui` finds it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute()}/mlflow.db"


class Tracker:
    """Sends runs of the store to one MLflow experiment."""

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        """`artifacts` is where MLflow keeps files if the tracking server leaves it to us."""
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    def send(self, store: Store, keys: Iterable[str] | None = None) -> int:
        """Bring MLflow up to what the store holds of these runs, or of all; returns how many.

        Repeating it sends nothing twice. Raises: TrackingError, StoreError.
        """
        with self._told():
            runs = store.runs(keys)
            client = self._connected()
            for run in runs:
                self._send(client, store, run)
        return len(runs)

    def attach(self, store: Store, profile: str, tables: str) -> None:
        """Make the tables an artifact of each of the profile's runs, in place of earlier ones.

        Raises: TrackingError, StoreError.
        """
        digest = hashlib.sha256(tables.encode()).hexdigest()
        with self._told():
            client = self._connected()
            for run in store.runs(profiles=[profile]):
                if not run.mlflow_run_id:
                    continue
                if client.get_run(run.mlflow_run_id).data.tags.get(TABLES_TAG) != digest:
                    client.log_text(run.mlflow_run_id, tables, TABLES_FILE)
                    client.set_tag(run.mlflow_run_id, TABLES_TAG, digest)

    def attach_figures(
        self, store: Store, figures: Mapping[str, Sequence[Path]], tag: str = FIGURES_TAG
    ) -> None:
        """Make files artifacts of runs, by key, in place of earlier ones of these names.

        Those of a run are sent if they are not what its `tag` says. Raises: TrackingError,
        StoreError.
        """
        with self._told():
            client = self._connected()
            for run in store.runs(figures):
                paths = figures[run.key]
                if not paths or not run.mlflow_run_id:
                    continue
                digest = hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
                if client.get_run(run.mlflow_run_id).data.tags.get(tag) != digest:
                    for path in paths:
                        client.log_artifact(run.mlflow_run_id, str(path), FIGURES_FOLDER)
                    client.set_tag(run.mlflow_run_id, tag, digest)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns whatever MLflow raises into one error, after which it is connected anew."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            self._client = None
            raise TrackingError(f"MLflow at {self.uri}: {first_line(error)}") from error

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            from mlflow import MlflowClient

            client = MlflowClient(self.uri)
            name = self.experiment[:NAME_LENGTH]
            found = client.get_experiment_by_name(name)
            if found is None:
                local = self.uri.startswith("sqlite:")
                location = self.artifacts.absolute().as_uri() if local else None
                self._experiment_id = client.create_experiment(name, location)
            else:
                self._experiment_id = found.experiment_id
            self._client = client
        return self._client

    def _send(self, client: "MlflowClient", store: Store, run: StoredRun) -> None:
        shown = self._find(client, run) or self._create(client, run)
        due = settled_epochs(store, run)
        there = shown_epochs(client, shown)
        if there.items() - due.items():  # trained again since: MLflow cannot take it back
            logger.info("MLflow run %s of %s is outdated", shown.info.run_id, run.key)
            client.delete_run(shown.info.run_id)
            shown, there = self._create(client, run), {}
        run_id = shown.info.run_id
        if run_id != run.mlflow_run_id:
            store.link(run.key, run_id)
        send_settings(client, shown, run)
        fresh = {epoch: stamp for epoch, stamp in due.items() if epoch not in there}
        if fresh:
            values = store.metrics(run.key, after=min(fresh) - 1, until=max(fresh))
            for metrics in batches({epoch: values[epoch] for epoch in fresh}, fresh):
                client.log_batch(run_id, metrics=metrics)
        send_state(client, shown, run)
        store.shown(run.key, run.status)

    def _find(self, client: "MlflowClient", run: StoredRun) -> "Run | None":
        """The MLflow run of a stored run: the one noted, else the one with its tags."""
        from mlflow.exceptions import MlflowException

        if run.mlflow_run_id:
            try:
                noted = client.get_run(run.mlflow_run_id)
            except MlflowException:
                logger.info("MLflow run %s of %s is gone", run.mlflow_run_id, run.key)
            else:
                if noted.info.lifecycle_stage == "active":
                    return noted
        found = client.search_runs(
            [self._experiment_id],
            f"tags.`{KEY_TAG}` = '{run.key}' and tags.`{CREATED_TAG}` = '{run.created_at}'",
            max_results=1,
        )
        return found[0] if found else None

    def _create(self, client: "MlflowClient", run: StoredRun) -> "Run":
        start = milliseconds(run.started_at or run.created_at)
        return client.create_run(self._experiment_id, start, tags_of(run), run_name(run))
