"""What every run is doing now, read from the store alone."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from orchestrator.analysis.status import RunStatus, run_statuses
from orchestrator.cli.options import (
    PIPED_WIDTH,
    SPEC,
    JsonOption,
    ResultsOption,
    SpecArgument,
    StoreOption,
    app,
    open_store,
)
from orchestrator.formatting import MISSING, format_duration, format_percent, format_table, to_json
from orchestrator.store import Status, Store

MOST = 100  # runs that a table shows unless it is asked for all
REFRESH_S = 2.0
TITLES = ["run", "name", "dataset", "profile", "seed", "epoch", "loss", "acc", "CRA 36/255"]
TITLES += ["images/s", "ETA", "state"]
LEFT = {"name", "dataset", "profile", "state"}


def print_status(
    store: Store, profile: str | None, *, as_json: bool = False, everything: bool = False
) -> None:
    """Print the state of the runs to the standard output; JSON always has every one."""
    if as_json:
        print(to_json([item.as_dict() for item in run_statuses(store, profile)]))
    elif everything:
        print(_plain(run_statuses(store, profile)))
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
    found = run_statuses(store, profile, most=MOST)
    table = Table(box=None, padding=(0, 1))
    for title in TITLES:
        justify: Literal["left", "right"] = "left" if title in LEFT else "right"
        table.add_column(title, justify=justify, no_wrap=title != "state")
    for item in found:
        table.add_row(*map(escape, _cells(item)))
    if len(found) < MOST:
        return Group(table)
    counts = store.count_by_status(profile)
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
    return format_table([_cells(item) for item in found], TITLES, left=LEFT, form="plain")


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
        *(format_percent(_percent(values.get(name))) for name in ("accuracy", "cra_36")),
        MISSING if item.images_per_s is None else f"{item.images_per_s:,.0f}",
        format_duration(item.left_s),
        item.state,
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


@app.command()
def status(
    spec: SpecArgument = SPEC,
    profile: Annotated[str | None, typer.Option(help="Only the runs of this profile.")] = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every run, also where there are hundreds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what each run is doing now; from any terminal, also while `run` goes on."""
    from orchestrator.cli.status import print_status, watch_status

    if watch and (as_json or everything):
        raise typer.BadParameter("--watch draws a table; for JSON or --all call again without it")
    opened = open_store(spec, results, store)
    known = opened.profiles()
    if profile and profile not in known:
        raise typer.BadParameter(f"no run of the profile {profile!r}, only of {', '.join(known)}")
    if watch:
        watch_status(opened, profile)
    print_status(opened, profile, as_json=as_json, everything=everything)
