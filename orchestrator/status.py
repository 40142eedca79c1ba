"""What every run is doing now, read from the store alone."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.grid import grid
from orchestrator.numbers import MISSING, duration, shown
from orchestrator.store import Status, Store, StoredRun

MOST = 100  # runs that a table shows unless it is asked for all
RECENT = 5  # epochs that the speed is taken from
SPEEDS = ("images_per_s", "seconds")
REFRESH_S = 2.0
PIPED_WIDTH = 160
TITLES = ["run", "name", "dataset", "profile", "seed", "epoch", "loss", "acc", "CRA 36/255"]
TITLES += ["images/s", "ETA", "state"]
LEFT = {"name", "dataset", "profile", "state"}
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


def statuses(store: Store, profile: str | None, *, most: int | None = None) -> list[RunStatus]:
    """Every run of the store, or of one profile, as it stands; or the `most` that matter first."""
    if most is not None:
        runs = store.runs(store.foremost(most, profile))
    else:
        runs = store.runs(profiles=None if profile is None else [profile])
    keys = [run.key for run in runs if run.epoch]
    values = store.latest(keys)
    speeds = store.latest(keys, epochs=RECENT, names=SPEEDS)
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


def print_status(
    store: Store, profile: str | None, *, as_json: bool = False, everything: bool = False
) -> None:
    """Print the state of the runs to the standard output; JSON always has every one."""
    if as_json:
        print(json.dumps([item.as_dict() for item in statuses(store, profile)], indent=2))
    elif everything:
        print(_plain(statuses(store, profile)))
    else:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        Console(file=sys.stdout, width=width).print(_overview(store, profile))


def watch_status(store: Store, profile: str | None) -> None:
    """Show the state of the runs until interrupted: in place on a terminal, else one by one."""
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        while True:
            print_status(store, profile)
            sys.stdout.flush()
            time.sleep(REFRESH_S)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_overview(store, profile), refresh=True)
            time.sleep(REFRESH_S)


def _overview(store: Store, profile: str | None) -> Group:
    """The runs that matter first in a table, and a line about the others if there are any."""
    found = statuses(store, profile, most=MOST)
    table = Table(box=None, padding=(0, 1))
    for title in TITLES:
        justify: Literal["left", "right"] = "left" if title in LEFT else "right"
        table.add_column(title, justify=justify, no_wrap=title != "state")
    for item in found:
        table.add_row(*map(escape, _cells(item)))
    if len(found) < MOST:
        return Group(table)
    counts = store.counts(profile)
    if len(found) == sum(counts.values()):
        return Group(table)
    return Group(table, Text(_others(len(found), counts)))


def _others(shown: int, counts: Mapping[Status, int]) -> str:
    """One line that says which runs are not shown, and how they are."""
    states = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    return (
        f"{shown} of {sum(counts.values()):,} runs ({states}): those that wait, train or broke "
        "off, then the newest; --all shows every run, --profile those of one profile"
    )


def _plain(found: Sequence[RunStatus]) -> str:
    """The same table of any length: rich takes a millisecond a row."""
    return grid([_cells(item) for item in found], TITLES, left=LEFT, form="plain")


def _cells(item: RunStatus) -> list[str]:
    """A run's line of the table."""
    run, values = item.run, item.values
    loss = values.get("train_loss")
    return [
        str(run.run_id),
        run.name,
        run.config["data"]["name"],
        run.profile,
        str(run.seed),
        f"{run.epoch}/{run.epochs}",
        MISSING if loss is None else f"{loss:.3f}",
        *(shown(_percent(values.get(name))) for name in ("accuracy", "cra_36")),
        MISSING if item.images_per_s is None else f"{item.images_per_s:,.0f}",
        duration(item.left_s),
        item.state,
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
