"""The state of every run, read from the store alone."""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

from orchestrator.store import Status, Store, StoredRun

RECENT = 5  # epochs that the speed is taken from

SPEEDS = ("images_per_s", "seconds")

WITHOUT_DRIVER = {
    Status.PENDING: "pending (driver gone)",
    Status.RUNNING: "lost (driver gone)",
}


@dataclass(frozen=True)
class RunStatus:
    """A run's state with its newest metrics; `left_s` is None unless it trains."""

    run: StoredRun
    state: str
    values: dict[str, float]
    images_per_s: float | None
    left_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "key": self.run.key,
            "run_id": self.run.run_id,
            "name": self.run.name,
            "dataset": self.run.config["data"]["name"],
            "profile": self.run.profile,
            "seed": self.run.seed,
            "state": self.state,
            "epoch": self.run.epoch,
            "epochs": self.run.epochs,
            "metrics": self.values,
            "images_per_s": self.images_per_s,
            "eta_s": self.left_s,
            "host": self.run.host,
            "device": self.run.device,
            "heartbeat_at": self.run.heartbeat_at,
            "error": self.run.error,
        }


def run_statuses(store: Store, profile: str | None, *, most: int | None = None) -> list[RunStatus]:
    """Every run of the store, or of one profile, as it stands; or the `most` that matter first."""
    if most is not None:
        runs = store.runs(store.keys_by_priority(most, profile))
    else:
        runs = store.runs(profiles=None if profile is None else [profile])
    keys = [run.key for run in runs if run.epoch]
    values = store.latest_metrics(keys)
    speeds = store.latest_metrics(keys, epochs=RECENT, names=SPEEDS)
    return [
        _status(run, values.get(run.key, {}).get(run.epoch, {}), speeds.get(run.key, {}))
        for run in runs
    ]


def _status(
    run: StoredRun, values: dict[str, float], recent: dict[int, dict[str, float]]
) -> RunStatus:
    alive = run.alive
    state = str(run.status) if alive else WITHOUT_DRIVER.get(run.status, str(run.status))
    speeds = [item["images_per_s"] for item in recent.values() if "images_per_s" in item]
    seconds = [item["seconds"] for item in recent.values() if "seconds" in item]
    trains = alive and run.status is Status.RUNNING
    left = fmean(seconds) * (run.epochs - run.epoch) if trains and seconds else None
    return RunStatus(run, state, values, fmean(speeds) if speeds else None, left)
