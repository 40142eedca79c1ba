"""The current state of every run, read from the store."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from aol.training.resume import TIMED_EPOCHS
from orchestrator.analysis.timing import epochs_to_read, mean_seconds
from orchestrator.store import Status, Store, StoredRun

SPEED_METRICS = ("images_per_s", "seconds")
WITHOUT_DRIVER = {
    Status.PENDING: "pending (driver gone)",
    Status.RUNNING: "lost (driver gone)",
}


@dataclass(frozen=True)
class RunStatus:
    """A run's state and newest metrics; `eta_s` is None unless it is in training."""

    run: StoredRun
    state: str
    values: dict[str, float]
    images_per_s: float | None
    eta_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "key": self.run.key,
            "run_id": self.run.run_id,
            "name": self.run.name,
            "dataset": self.run.dataset,
            "profile": self.run.profile,
            "seed": self.run.seed,
            "state": self.state,
            "epoch": self.run.epoch,
            "epochs": self.run.epochs,
            "metrics": self.values,
            "images_per_s": self.images_per_s,
            "eta_s": self.eta_s,
            "host": self.run.host,
            "device": self.run.device,
            "heartbeat_at": self.run.heartbeat_at,
            "error": self.run.error,
        }


def run_statuses(store: Store, profile: str | None, *, limit: int | None = None) -> list[RunStatus]:
    """Return the state of all runs, of one profile's, or of the `limit` most relevant ones."""
    if limit is None:
        runs = store.runs(profiles=None if profile is None else [profile])
    else:
        runs = store.runs(store.keys_by_priority(limit, profile))
    keys = [run.key for run in runs if run.epoch]
    values = store.latest_metrics(keys)
    latest = epochs_to_read(run.eval_every for run in runs)
    speeds = store.latest_metrics(keys, epochs=latest, names=SPEED_METRICS)
    return [
        _status(run, values.get(run.key, {}).get(run.epoch, {}), speeds.get(run.key, {}))
        for run in runs
    ]


def _status(
    run: StoredRun, values: dict[str, float], speeds: dict[int, dict[str, float]]
) -> RunStatus:
    state = str(run.status)
    if not run.alive:
        state = WITHOUT_DRIVER.get(run.status, state)
    latest = [epoch for _, epoch in sorted(speeds.items())[-TIMED_EPOCHS:]]
    rates = [epoch["images_per_s"] for epoch in latest if "images_per_s" in epoch]
    seconds = {number: epoch["seconds"] for number, epoch in speeds.items() if "seconds" in epoch}
    trains = run.alive and run.status is Status.RUNNING
    eta = None
    if trains and seconds:
        eta = mean_seconds(seconds, run.eval_every, run.epochs) * (run.epochs - run.epoch)
    return RunStatus(run, state, values, fmean(rates) if rates else None, eta)
