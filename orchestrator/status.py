"""What every run is doing now, read from the store alone."""

import json
import sys
import time
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from orchestrator.numbers import MISSING, shown
from orchestrator.progress import duration
from orchestrator.store import Status, Store, StoredRun

RECENT = 5  # epochs that the speed is taken from
REFRESH_S = 2.0
PIPED_WIDTH = 160
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


def statuses(store: Store, profile: str | None) -> list[RunStatus]:
    """Every run of the store, or of one profile, as it stands."""
    return [_status(store, run) for run in store.runs() if profile in (None, run.profile)]


def _status(store: Store, run: StoredRun) -> RunStatus:
    recent = store.metrics(run.key, after=run.epoch - RECENT) if run.epoch else {}
    values = recent.get(run.epoch, {})
    state = str(run.status) if run.alive else WITHOUT_DRIVER.get(run.status, str(run.status))
    speeds = [item["images_per_s"] for item in recent.values() if "images_per_s" in item]
    seconds = [item["seconds"] for item in recent.values() if "seconds" in item]
    trains = run.alive and run.status is Status.RUNNING
    left = fmean(seconds) * (run.epochs - run.epoch) if trains and seconds else None
    return RunStatus(run, state, values, fmean(speeds) if speeds else None, left)


def print_status(store: Store, profile: str | None, *, as_json: bool) -> None:
    """Print the state of every run to the standard output."""
    found = statuses(store, profile)
    if as_json:
        print(json.dumps([item.as_dict() for item in found], indent=2))
    else:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        Console(file=sys.stdout, width=width).print(_table(found))


def watch_status(store: Store, profile: str | None) -> None:
    """Show the state of every run until interrupted: in place on a terminal, else one by one."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        while True:
            print_status(store, profile, as_json=False)
            sys.stdout.flush()
            time.sleep(REFRESH_S)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_table(statuses(store, profile)), refresh=True)
            time.sleep(REFRESH_S)


def _table(found: list[RunStatus]) -> Table:
    table = Table(box=None, padding=(0, 1))
    left = {"name", "dataset", "profile", "state"}
    titles = ("run", "name", "dataset", "profile", "seed", "epoch", "loss", "acc", "CRA 36/255")
    for title in (*titles, "images/s", "ETA", "state"):
        justify: Literal["left", "right"] = "left" if title in left else "right"
        table.add_column(title, justify=justify, no_wrap=title != "state")
    for item in found:
        run, values = item.run, item.values
        loss = values.get("train_loss")
        table.add_row(
            str(run.run_id),
            escape(run.name),
            run.config["data"]["name"],
            escape(run.profile),
            str(run.seed),
            f"{run.epoch}/{run.epochs}",
            MISSING if loss is None else f"{loss:.3f}",
            *(shown(_percent(values.get(name))) for name in ("accuracy", "cra_36")),
            MISSING if item.images_per_s is None else f"{item.images_per_s:,.0f}",
            duration(item.left_s),
            item.state,
        )
    return table


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
