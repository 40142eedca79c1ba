"""What MLflow shows of a stored run, in MLflow's terms and within its limits."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from aol.config import flatten, from_dict
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

KEY_TAG = "aol.key"
CREATED_TAG = "aol.created"  # a run that is trained anew is another run in MLflow
METRICS_PER_CALL, PARAMS_PER_CALL = 900, 100  # MLflow refuses more than 1000 and 100
PARAM_LENGTH, TAG_LENGTH, NAME_LENGTH = 6000, 8000, 250  # longer values are refused, too
SETTLED = (Status.DONE, Status.DIVERGED, Status.UNSOUND)  # no epoch of such a run is trained again
MLFLOW_STATUS = {
    Status.PENDING: "SCHEDULED",
    Status.RUNNING: "RUNNING",
    Status.DONE: "FINISHED",
    Status.FAILED: "FAILED",
    Status.DIVERGED: "FAILED",
    Status.UNSOUND: "FAILED",
    Status.INTERRUPTED: "KILLED",
}


def settled_epochs(store: Store, run: StoredRun) -> dict[int, int]:
    """The epochs that will not be trained again, with the time of each in milliseconds."""
    last = run.epoch
    if run.status not in SETTLED:
        saved = (item.epoch for item in run.checkpoints if item.epoch <= run.epoch)
        last = max(saved, default=0)
    stamps = store.recorded_at(run.key)
    return {epoch: milliseconds(stamp) for epoch, stamp in stamps.items() if epoch <= last}


def shown_epochs(client: "MlflowClient", shown: "Run") -> dict[int, int]:
    """The epochs that MLflow has, with the time of each."""
    if "epoch" not in shown.data.metrics:
        return {}
    history = client.get_metric_history(shown.info.run_id, "epoch")
    return {item.step: item.timestamp for item in history}


def batches(
    epochs: Mapping[int, Mapping[str, float]], stamps: Mapping[int, int]
) -> Iterator[list["Metric"]]:
    """The epochs' metrics, as many a call as MLflow takes.

    `epoch` comes last of its epoch: once it is there, the epoch is complete.
    """
    from mlflow.entities import Metric

    batch: list[Metric] = []
    for epoch, values in sorted(epochs.items()):
        for name, value in [*values.items(), ("epoch", float(epoch))]:
            batch.append(Metric(name, value, stamps[epoch], epoch))
            if len(batch) == METRICS_PER_CALL:
                yield batch
                batch = []
    if batch:
        yield batch


def send_settings(client: "MlflowClient", shown: "Run", run: StoredRun) -> None:
    """Bring the run's parameters up to its settings."""
    from mlflow.entities import Param

    settings = flatten(from_dict(dict(run.config)))
    params = [
        Param(name, str(value)[:PARAM_LENGTH])
        for name, value in settings.items()
        if name not in shown.data.params
    ]
    for start in range(0, len(params), PARAMS_PER_CALL):
        client.log_batch(shown.info.run_id, params=params[start : start + PARAMS_PER_CALL])


def send_state(client: "MlflowClient", shown: "Run", run: StoredRun) -> None:
    """Bring the run's tags, status and end up to what the store says."""
    from mlflow.entities import RunTag

    run_id, tags = shown.info.run_id, tags_of(run)
    changed = [RunTag(name, tags[name]) for name in tags if shown.data.tags.get(name) != tags[name]]
    if changed:
        client.log_batch(run_id, tags=changed)
    status = MLFLOW_STATUS[run.status]
    if shown.info.status == status:
        return
    if run.finished_at:
        client.set_terminated(run_id, status, milliseconds(run.finished_at))
    else:
        client.update_run(run_id, status=status)


def run_name(run: StoredRun) -> str:
    """What MLflow calls a run."""
    name = f"{run.run_id} {run.name} ({run.config['data']['name']}, seed {run.seed})"
    return name[:NAME_LENGTH]


def milliseconds(stamp: str) -> int:
    """The store's time as MLflow's."""
    return round(datetime.fromisoformat(stamp).timestamp() * 1000)


def tags_of(run: StoredRun) -> dict[str, str]:
    """What a run is found by, and where its results come from."""
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
    return {name: value[:TAG_LENGTH] for name, value in tags.items() if value}
