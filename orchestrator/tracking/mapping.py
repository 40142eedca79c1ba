"""Converting a stored run to the params, metrics and tags of an MLflow run."""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from aol.config import flatten, from_dict
from orchestrator.store import ENDED, Status, Store, StoredRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

KEY_TAG = "aol.key"
CREATED_TAG = "aol.created"  # a run that is trained again from the start is another MLflow run
METRICS_PER_CALL, PARAMS_PER_CALL = 900, 100  # MLflow accepts at most 1000 and 100
PARAM_LENGTH, TAG_LENGTH, NAME_LENGTH = 6000, 8000, 250  # MLflow rejects longer values
REJECTED = re.compile(r"[^\w\- ]")  # also the dot and the slash, which may lead out of a folder
MLFLOW_STATUS = {
    Status.PENDING: "SCHEDULED",
    Status.RUNNING: "RUNNING",
    Status.DONE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.DIVERGED: "FAILED",
    Status.UNSOUND: "FAILED",
    Status.INTERRUPTED: "KILLED",
}


def final_epochs(store: Store, run: StoredRun) -> dict[int, int]:
    """Return the epochs that will not be trained again, each with its time in milliseconds."""
    last = run.epoch
    if run.status not in ENDED:
        saved = (item.epoch for item in run.checkpoints if item.epoch <= run.recorded)
        last = max(saved, default=0)
    stamps = store.recorded_at(run.key)
    return {epoch: to_milliseconds(stamp) for epoch, stamp in stamps.items() if epoch <= last}


def logged_epochs(client: "MlflowClient", mlflow_run: "Run") -> dict[int, int]:
    """Return the epochs logged in MLflow, each with its time in milliseconds."""
    if "epoch" not in mlflow_run.data.metrics:
        return {}
    history = client.get_metric_history(mlflow_run.info.run_id, "epoch")
    return {item.step: item.timestamp for item in history}


def metric_batches(
    epochs: Mapping[int, Mapping[str, float]], stamps: Mapping[int, int]
) -> Iterator[list["Metric"]]:
    """Yield the epochs' metrics in batches that MLflow accepts.

    The metric `epoch` is the last one of each epoch: if it is logged, the epoch is complete.
    """
    from mlflow.entities import Metric

    batch: list[Metric] = []
    for epoch, values in sorted(epochs.items()):
        for name, value in [*values.items(), ("epoch", float(epoch))]:
            batch.append(Metric(metric_name(name), value, stamps[epoch], epoch))
            if len(batch) == METRICS_PER_CALL:
                yield batch
                batch = []
    if batch:
        yield batch


def metric_name(name: str) -> str:
    """Return a metric's name with `_` for each character that MLflow rejects."""
    return REJECTED.sub("_", name)[:NAME_LENGTH] or "_"


def log_params(client: "MlflowClient", mlflow_run: "Run", run: StoredRun) -> None:
    """Log the settings that are not logged as params yet."""
    from mlflow.entities import Param

    settings = flatten(from_dict(dict(run.config)))
    params = [
        Param(name, str(value)[:PARAM_LENGTH])
        for name, value in settings.items()
        if name not in mlflow_run.data.params
    ]
    for start in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(mlflow_run.info.run_id, params=params[start : start + PARAMS_PER_CALL])


def log_status(client: "MlflowClient", mlflow_run: "Run", run: StoredRun) -> None:
    """Update the tags, the status and the end time to those in the store."""
    from mlflow.entities import RunTag

    run_id, tags = mlflow_run.info.run_id, run_tags(run)
    logged = mlflow_run.data.tags
    changed = [RunTag(name, tag) for name, tag in tags.items() if logged.get(name) != tag]
    if changed:
        client.log_batch(run_id, tags=changed)
    status = MLFLOW_STATUS[run.status]
    if mlflow_run.info.status == status:
        return
    if run.finished_at:
        client.set_terminated(run_id, status, to_milliseconds(run.finished_at))
    else:
        client.update_run(run_id, status=status)


def run_name(run: StoredRun) -> str:
    """Return the name of the MLflow run."""
    name = f"{run.run_id} {run.name} ({run.config['data']['name']}, seed {run.seed})"
    return name[:NAME_LENGTH]


def to_milliseconds(stamp: str) -> int:
    """Convert a time of the store to MLflow's unit."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)


def run_tags(run: StoredRun) -> dict[str, str]:
    """Return the tags that identify a run and the origin of its results."""
    tags = {
        KEY_TAG: run.key,
        CREATED_TAG: run.created_at,
        "run_id": str(run.run_id),
        "model": run.name,
        "dataset": run.dataset,
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
    return {name: value[:TAG_LENGTH] for name, value in tags.items() if value}
