"""MLflow as a projection of the store. The only file that imports MLflow.

Whatever MLflow shows is read from the store and sent by a thread of its own, so a slow or dead
server costs training nothing, and everything can be sent again.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from aol.config import flatten, from_dict
from orchestrator.events import EpochDone, Event, Finished, Started
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

KEY_TAG = "aol.key"
CREATED_TAG = "aol.created"  # a run that is trained anew is another run in MLflow
BATCH = 900  # metrics a call; MLflow refuses more than 1000
MLFLOW_STATUS = {
    Status.PENDING: "SCHEDULED",
    Status.RUNNING: "RUNNING",
    Status.DONE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.DIVERGED: "FAILED",
    Status.UNSOUND: "FAILED",
    Status.INTERRUPTED: "KILLED",
}


class TrackingError(Exception):
    """MLflow cannot be reached or refuses; the store has everything."""

    exit_code = 1


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

        Repeating it sends nothing twice. Raises: TrackingError.
        """
        try:
            runs = store.runs(keys)
            client = self._connected()
            for run in runs:
                self._send(client, store, run)
        except Exception as error:
            self._client = None
            raise TrackingError(f"MLflow at {self.uri}: {error}") from error
        return len(runs)

    def attach(self, store: Store, keys: Iterable[str], files: Iterable[Path]) -> None:
        """Add files to the runs' artifacts. Raises: TrackingError."""
        files = list(files)
        try:
            client = self._connected()
            for run in store.runs(keys):
                for file in files if run.mlflow_run_id else []:
                    client.log_artifact(run.mlflow_run_id or "", str(file), "tables")
        except Exception as error:
            raise TrackingError(f"MLflow at {self.uri}: {error}") from error

    def _connected(self) -> "MlflowClient":
        if self._client is None:
            from mlflow import MlflowClient

            client = MlflowClient(self.uri)
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                local = self.uri.startswith("sqlite:")
                location = self.artifacts.absolute().as_uri() if local else None
                self._experiment_id = client.create_experiment(self.experiment, location)
            else:
                self._experiment_id = found.experiment_id
            self._client = client
        return self._client

    def _send(self, client: "MlflowClient", store: Store, run: StoredRun) -> None:
        from mlflow.entities import Metric, RunTag

        run_id = self._open(client, store, run)
        shown = client.get_run(run_id)
        fresh = store.metrics(run.key, after=int(shown.data.metrics.get("epoch", 0)))
        stamp = int(time.time() * 1000)
        metrics = [
            Metric(name, value, stamp, epoch)
            for epoch, values in fresh.items()
            for name, value in [*values.items(), ("epoch", float(epoch))]  # epoch last: it says
        ]  # which epochs are complete
        for start in range(0, len(metrics), BATCH):
            client.log_batch(run_id, metrics=metrics[start : start + BATCH])
        tags = {
            name: value for name, value in _tags(run).items() if shown.data.tags.get(name) != value
        }
        if tags:
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        status = MLFLOW_STATUS[run.status]
        if shown.info.status != status:
            if run.finished_at:
                client.set_terminated(run_id, status, _milliseconds(run.finished_at))
            else:
                client.update_run(run_id, status=status)

    def _open(self, client: "MlflowClient", store: Store, run: StoredRun) -> str:
        """The MLflow run of a stored run: the one noted, else found by its tag, else a new one."""
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        if run.mlflow_run_id:
            try:
                noted = client.get_run(run.mlflow_run_id)
            except MlflowException:
                logger.info("MLflow run %s of %s is gone", run.mlflow_run_id, run.key)
            else:
                if noted.info.lifecycle_stage == "active":
                    return run.mlflow_run_id
        known = client.search_runs(
            [self._experiment_id],
            f"tags.`{KEY_TAG}` = '{run.key}' and tags.`{CREATED_TAG}` = '{run.created_at}'",
            max_results=1,
        )
        if known:
            run_id = str(known[0].info.run_id)
        else:
            name = f"{run.run_id} {run.name} ({run.config['data']['name']}, seed {run.seed})"
            created = client.create_run(
                self._experiment_id, _milliseconds(run.created_at), _tags(run), name
            )
            run_id = str(created.info.run_id)
            settings = flatten(from_dict(dict(run.config)))
            client.log_batch(run_id, params=[Param(k, str(v)) for k, v in settings.items()])
        store.link(run.key, run_id)
        return run_id


def _milliseconds(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)


def _tags(run: StoredRun) -> dict[str, str]:
    tags = {
        KEY_TAG: run.key,
        CREATED_TAG: run.created_at,
        "run_id": str(run.run_id),
        "model": run.name,
        "dataset": run.config["data"]["name"],
        "profile": run.profile,
        "seed": str(run.seed),
        "digest": run.digest,
        "status": str(run.status),
        "git_commit": run.git_commit or "",
        "host": run.host or "",
        "device": run.device or "",
        "certified_in": (run.certificate or {}).get("arithmetic", ""),
        "unsound": (run.error or "") if run.status is Status.UNSOUND else "",
    }
    return {name: value for name, value in tags.items() if value}


class TrackingRecorder:
    """Sends runs to MLflow from a thread as they move; failures are noted, not raised."""

    def __init__(self, tracker: Tracker, store: Store) -> None:
        self.tracker, self.store = tracker, store
        self.problem: str | None = None
        self._moved: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Note that the event's run moved."""
        if isinstance(event, Started | EpochDone | Finished):
            self._moved.put(event.run.key)

    def close(self, timeout_s: float) -> str | None:
        """Send what is left, for so long at most; returns what went wrong, if anything."""
        self._moved.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"MLflow at {self.tracker.uri} is slow: not everything is there yet"
        return self.problem

    def _run(self) -> None:
        pending: set[str] = set()
        open_ = True
        while open_:
            key = self._moved.get()
            while key is not None:
                pending.add(key)
                if self._moved.empty():
                    break
                key = self._moved.get()
            open_ = key is not None
            if self.problem and open_:  # a broken server is tried again at the end only
                continue
            try:
                self.tracker.send(self.store, pending)
            except TrackingError as error:
                self.problem = str(error)
                logger.warning("%s", error)
            else:
                self.problem = None
                pending.clear()
