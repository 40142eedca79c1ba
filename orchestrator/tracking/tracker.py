"""Sending runs of the store to MLflow, with their tables and figures."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from aol.errors import first_line
from orchestrator.errors import StoreError, TrackingError
from orchestrator.masking import mask_secrets
from orchestrator.store import Store, StoredRun
from orchestrator.tracking.mapping import (
    CREATED_TAG,
    KEY_TAG,
    NAME_LENGTH,
    final_epochs,
    log_params,
    log_status,
    logged_epochs,
    metric_batches,
    run_name,
    run_tags,
    to_milliseconds,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

ACTIVE = "active"  # the lifecycle stage of what is not deleted
REPORT_TAG = "aol.report"  # the profile, of the MLflow run with its tables and figures
TABLES_TAG = "aol.tables"  # a digest of the attached tables
TABLES_FILE = "tables/tables.md"
FIGURES_TAG = "aol.figures"  # a digest of the attached figures
FIGURES_FOLDER = "figures"


def tracking_uri(folder: Path) -> str:
    """Return `$MLFLOW_TRACKING_URI`, or mlflow.db in the folder, the default of `mlflow ui`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or database_uri(folder.absolute() / "mlflow.db")


def database_uri(file: Path) -> str:
    """Return MLflow's URI of a SQLite database."""
    quoted = re.sub("[%?]", lambda found: quote(found[0]), str(file))
    # With the plain scheme, MLflow creates the folder as it is written in the URI
    scheme = "sqlite" if quoted == str(file) else "sqlite+pysqlite"
    return f"{scheme}:///{quoted}"


def tracking_folder(spec: Path, results: Path) -> Path:
    """Return the folder of local MLflow data: that of the file, or the results if it is read-only.

    Plain `mlflow ui` finds the data beside the file.
    """
    return spec.parent if os.access(spec.parent, os.W_OK) else results


def tracker_for(spec: Path, experiment: str, results: Path) -> "Tracker":
    """Return a tracker of the experiment in a file."""
    folder = tracking_folder(spec, results)
    return Tracker(tracking_uri(folder), experiment, folder / "mlruns")


class Tracker:
    """Sends runs of the store to one MLflow experiment.

    Every method raises TrackingError if MLflow fails, and StoreError.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        """`artifacts` is the folder of artifacts if the tracking database is a local file."""
        self.uri, self.experiment, self.artifacts = uri, experiment, artifacts
        self.name = mask_secrets(uri)  # in messages
        self._client: MlflowClient | None = None
        self._experiment_id = ""

    def send(self, store: Store, keys: Iterable[str] | None = None) -> int:
        """Send what MLflow lacks of these runs, or of all; return the number of runs.

        Runs that never started are not sent.
        """
        with self._translate_errors():
            runs = [run for run in store.runs(keys) if run.started_at]
            client = self._connect()
            for run in runs:
                self._send_run(client, store, run)
        return len(runs)

    def attach_tables(self, profile: str, tables: str) -> None:
        """Attach the tables to the profile's report, in place of earlier ones."""
        digest = hashlib.sha256(tables.encode()).hexdigest()
        with self._translate_errors():
            client = self._connect()
            report = self._report(client, profile)
            if report.data.tags.get(TABLES_TAG) != digest:
                client.log_text(report.info.run_id, tables, TABLES_FILE)
                client.set_tag(report.info.run_id, TABLES_TAG, digest)

    def attach_figures(self, profile: str, figures: Sequence[Path]) -> None:
        """Attach files to the profile's report, in place of earlier ones of the same names."""
        with self._translate_errors():
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in figures)).hexdigest()
            client = self._connect()
            report = self._report(client, profile)
            if report.data.tags.get(FIGURES_TAG) != digest:
                for path in figures:
                    client.log_artifact(report.info.run_id, str(path), FIGURES_FOLDER)
                client.set_tag(report.info.run_id, FIGURES_TAG, digest)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise TrackingError for any error of MLflow, and connect again next time."""
        try:
            yield
        except StoreError:
            raise
        except Exception as error:
            self._client = None
            raise TrackingError(f"MLflow at {self.name}: {first_line(error)}") from error

    def _connect(self) -> "MlflowClient":
        """Return the client; create the experiment, or restore it if it was deleted."""
        if self._client is None:
            from mlflow import MlflowClient

            self._client = MlflowClient(self.uri)
        client, name = self._client, self.experiment[:NAME_LENGTH]
        found = client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite")
            location = self.artifacts.absolute().as_uri() if local else None
            self._experiment_id = client.create_experiment(name, location)
            return client
        self._experiment_id = found.experiment_id
        if found.lifecycle_stage != ACTIVE:  # its name is taken, so it cannot be created again
            client.restore_experiment(found.experiment_id)
            logger.warning("the experiment %r was deleted in MLflow and is restored", name)
        self._adopt_artifacts(found.artifact_location)
        return client

    def _adopt_artifacts(self, location: str) -> None:
        """Change the locations of artifacts to this project's, if it was copied or moved.

        MLflow keeps absolute locations, and a copy would write to its original. Locations that this
        program did not choose are left as they are.
        """
        own = self.artifacts.absolute()
        database = own.parent / "mlflow.db"
        chosen = location.startswith("file:") and location.rpartition("/")[2] == own.name
        if location == own.as_uri() or not chosen or self.uri != database_uri(database):
            return
        import sqlite3

        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - above
                    f" WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (own.as_uri(), len(location) + 1, location, len(location) + 1, f"{location}/"),
                )

    def _send_run(self, client: "MlflowClient", store: Store, run: StoredRun) -> None:
        mlflow_run = self._find(client, run) or self._create(client, run)
        final = final_epochs(store, run)
        logged = logged_epochs(client, mlflow_run)
        if logged.items() - final.items():  # trained again since, and MLflow cannot delete metrics
            logger.info("MLflow run %s of %s is outdated", mlflow_run.info.run_id, run.key)
            client.delete_run(mlflow_run.info.run_id)
            mlflow_run, logged = self._create(client, run), {}
        run_id = mlflow_run.info.run_id
        if run_id != run.mlflow_run_id:
            store.set_mlflow_run(run.key, run_id)
        log_params(client, mlflow_run, run)
        missing = {epoch: stamp for epoch, stamp in final.items() if epoch not in logged}
        if missing:
            values = store.metrics(run.key, after=min(missing) - 1, until=max(missing))
            for metrics in metric_batches({epoch: values[epoch] for epoch in missing}, missing):
                client.log_batch(run_id, metrics=metrics)
        log_status(client, mlflow_run, run)
        store.set_mlflow_status(run.key, run.status)

    def _find(self, client: "MlflowClient", run: StoredRun) -> "Run | None":
        """Find the MLflow run of a stored run, by its ID in the store or else by its tags."""
        from mlflow.exceptions import MlflowException

        if run.mlflow_run_id:
            try:
                found = client.get_run(run.mlflow_run_id)
            except MlflowException:
                logger.info("MLflow run %s of %s is missing", run.mlflow_run_id, run.key)
            else:
                if found.info.lifecycle_stage == ACTIVE:
                    return found
        tagged = client.search_runs([self._experiment_id], f"tags.`{KEY_TAG}` = '{run.key}'")
        created = (one for one in tagged if one.data.tags.get(CREATED_TAG) == run.created_at)
        return next(created, None)

    def _report(self, client: "MlflowClient", profile: str) -> "Run":
        """Return the MLflow run with a profile's tables and figures; create it if necessary."""
        reports = client.search_runs([self._experiment_id], f"tags.`{REPORT_TAG}` LIKE '%'")
        for found in reports:
            if found.data.tags[REPORT_TAG] == profile:
                return found
        name = f"tables and figures of {profile}"[:NAME_LENGTH]
        created = client.create_run(self._experiment_id, tags={REPORT_TAG: profile}, run_name=name)
        client.set_terminated(created.info.run_id)
        return created

    def _create(self, client: "MlflowClient", run: StoredRun) -> "Run":
        start = to_milliseconds(run.started_at or run.created_at)
        return client.create_run(self._experiment_id, start, run_tags(run), run_name(run))
