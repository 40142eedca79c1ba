"""`status`: print the current state of every run."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aol.text import printable
from orchestrator.analysis.status import RunStatus, run_statuses
from orchestrator.cli.options import PIPED_WIDTH, JsonOption, StoreOptions, command
from orchestrator.formatting import MISSING, format_duration, format_percent, format_table, to_json
from orchestrator.store import Status, Store

MAX_ROWS = 100  # of a table without --all
REFRESH_S = 2.0
HEADERS = ["run", "name", "dataset", "profile", "seed", "epoch", "loss", "acc", "CRA 36/255"]
HEADERS += ["images/s", "ETA", "state"]
LEFT_ALIGNED = {"name", "dataset", "profile", "state"}


@command
def status(
    options: StoreOptions,
    profile: Annotated[str | None, typer.Option(help="Only the runs of this profile.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help=f"Print every run, also beyond {MAX_ROWS}.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the current state of every run.

    It works from any terminal, also while `run` is training.
    """
    if watch and (as_json or everything):
        raise typer.BadParameter("--watch cannot be combined with --json or --all")
    store = options.open_store()
    profiles = store.profiles()
    if profile and profile not in profiles:
        raise typer.BadParameter(
            f"no run has the profile {profile!r}; the profiles: {', '.join(profiles)}"
        )
    if watch:
        watch_status(store, profile)
    print_status(store, profile, as_json=as_json, everything=everything)


def print_status(
    store: Store, profile: str | None, *, as_json: bool = False, everything: bool = False
) -> None:
    """Print the state of the runs to the standard output; JSON always contains every run."""
    if as_json:
        print(to_json([run.as_dict() for run in run_statuses(store, profile)]))
    elif everything:
        print(_plain_table(run_statuses(store, profile)))
    else:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        Console(file=sys.stdout, width=width).print(_overview(store, profile))


def watch_status(store: Store, profile: str | None) -> None:
    """Print the state of the runs until interrupted; on a terminal, update it in place."""
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
    """Return a table of the most relevant runs, and a line about the others if there are any."""
    runs = run_statuses(store, profile, limit=MAX_ROWS)
    table = Table(box=None, padding=(0, 1))
    for header in HEADERS:
        justify: Literal["left", "right"] = "left" if header in LEFT_ALIGNED else "right"
        table.add_column(header, justify=justify, no_wrap=header != "state")
    for run in runs:
        table.add_row(*(Text(printable(cell)) for cell in _row(run)))
    counts = store.count_by_status(profile) if len(runs) == MAX_ROWS else {}
    if len(runs) >= sum(counts.values()):
        return Group(table)
    return Group(table, Text(_describe_others(len(runs), counts)))


def _describe_others(shown: int, counts: Mapping[Status, int]) -> str:
    states = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    return (
        f"{shown} of {sum(counts.values()):,} runs ({states}), unfinished ones first; --all prints "
        "every run, --profile those of one profile"
    )


def _plain_table(runs: Sequence[RunStatus]) -> str:
    """Return the table of any number of runs; rich would take a millisecond per row."""
    return format_table([_row(run) for run in runs], HEADERS, left=LEFT_ALIGNED, style="plain")


def _row(status: RunStatus) -> list[str]:
    run, values = status.run, status.values
    loss = values.get("train_loss")
    shares = [values.get(name) for name in ("accuracy", "cra_36")]
    return [
        str(run.run_id),
        run.name,
        run.dataset,
        run.profile,
        str(run.seed),
        f"{run.epoch}/{run.epochs}",
        MISSING if loss is None else f"{loss:.3f}",
        *(format_percent(None if share is None else 100 * share) for share in shares),
        MISSING if status.images_per_s is None else f"{status.images_per_s:,.0f}",
        format_duration(status.eta_s),
        status.state,
    ]
