"""`run` and `plan`: train the runs, or print what would be trained."""

import logging
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    PIPED_WIDTH,
    SPEC,
    AddressOption,
    JobsOption,
    JsonOption,
    OnlyOption,
    ProfileOption,
    QuietOption,
    ResultsOption,
    SeedsOption,
    SetOption,
    SpecArgument,
    StoreOption,
    TableOption,
    VerboseOption,
    app,
)
from orchestrator.errors import ExitCode, RequestError
from orchestrator.formatting import to_json

if TYPE_CHECKING:
    from orchestrator.driver.run import RunOutcome
    from orchestrator.driver.session import Session


@app.command()
def run(
    context: typer.Context,
    spec: SpecArgument = SPEC,
    profile: ProfileOption = None,
    only: OnlyOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    jobs: JobsOption = None,
    address: AddressOption = "local",
    results: ResultsOption = None,
    store: StoreOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Where checkpoints go, a path or URI that every machine of the cluster reaches."
            "  [default: ray/ in the results]"
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a run is tried again when its worker is lost.")
    ] = 3,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="Stop all when one run fails.")
    ] = False,
    rerun: Annotated[
        str | None,
        typer.Option(metavar="IDS", help="Forget what the store holds of these runs first."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and stop.")
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train every run of SPEC that the store does not hold yet, then write the tables."""
    from orchestrator.driver.run import run_session

    if verbose:
        logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))
    with open_session(context, quiet=quiet) as session:
        if dry_run:
            print_plan(session)
            return
        outcome = run_session(session)
        raise typer.Exit(report_outcome(outcome, session))


@app.command()
def plan(
    context: typer.Context,
    spec: SpecArgument = SPEC,
    profile: ProfileOption = None,
    only: OnlyOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    jobs: JobsOption = None,
    address: AddressOption = "local",
    results: ResultsOption = None,
    store: StoreOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Like 40gpuh or 100usd: what to train for it to settle most cells."),
    ] = None,
    table: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what `run` would do with each run, and why; with --budget, what to train first."""
    if table and not budget:
        raise typer.BadParameter("--table goes with --budget; for single runs there is --only")
    if budget and seeds is not None:
        raise RequestError(f"--seeds {seeds}: does not go with --budget, which chooses the seeds")
    with open_session(context, quiet=as_json) as session:
        if budget:
            from orchestrator.cli.missing import print_budget

            print_budget(session, budget, table, as_json=as_json)
        else:
            print_plan(session, as_json=as_json)


@contextmanager
def open_session(context: typer.Context, *, quiet: bool = False) -> Iterator["Session"]:
    """Open the session of the command's options, which have the names of `RunOptions`."""
    from orchestrator.cli.console import ConsoleObserver
    from orchestrator.driver.session import RunOptions, Session

    names = {field.name for field in fields(RunOptions)}
    given = {name: value for name, value in context.params.items() if name in names}
    given["settings"] = tuple(given["settings"] or ())
    with (
        closing(ConsoleObserver(quiet=quiet)) as observer,
        Session(RunOptions(**given), observer) as session,
    ):
        yield session


def print_plan(session: "Session", *, as_json: bool = False) -> None:
    """Print what `run` would do; nothing is written, but an old store gets its new schema."""
    from rich.console import Console

    from orchestrator.cli.console import plan_table
    from orchestrator.planning.plan import as_rows
    from orchestrator.store import Store, exists

    found = exists(session.store_location)
    plan = session.plan(Store(session.store_location) if found else None)
    if as_json:
        typer.echo(to_json(as_rows(plan)))
    else:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        table = plan_table(plan, session.experiment.profile)
        Console(file=sys.stdout, width=width).print(table)
    session.preflight(plan)


def report_outcome(outcome: "RunOutcome", session: "Session") -> int:
    """Print what became of the runs, where the tables are and what to do next.

    Returns the exit code.
    """
    from orchestrator.store import Status

    message, runs = session.observer.message, outcome.runs
    if outcome.problem:
        text = f"{outcome.problem}\nThe store is complete; `sync` sends it to MLflow."
        message(text, important=True)
    counts = Counter(str(run.status) for run in runs)
    message(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + ".")
    message(f"Tables: {_relative(outcome.tables)}")
    if outcome.signal is not None:
        message(f"Stopped. The same command continues: {_command()}")
        return 128 + outcome.signal
    unsound = [run for run in runs if run.status is Status.UNSOUND]
    for run in unsound:
        message(f"Unsound, not in the tables: run {run.run_id}, {run.error}", important=True)
    broken = [run for run in runs if run.status in (Status.FAILED, Status.DIVERGED)]
    if broken:
        named = ", ".join(f"{run.run_id} ({run.status})" for run in broken)
        message(f"Not finished: {named}. Logs: {_relative(session.logs)}/", important=True)
    if broken or unsound:
        return ExitCode.UNFINISHED
    if not outcome.done:
        message(f"Not all runs are finished. The same command continues: {_command()}")
        return ExitCode.UNFINISHED
    message(f"Print them: {_report_command(session)}")
    message(f"Every run with its curves: {_program('mlflow')} ui")
    return ExitCode.OK


def _report_command(session: "Session") -> str:
    """Return the command that prints the tables of this session."""
    options, given = list(session.whole.options), session.options
    options += ["--results", str(given.results)] if given.results else []
    options += ["--store", given.store] if given.store else []
    program = f"{_program('python')} -m orchestrator report {_relative(given.spec)}"
    return f"{program} {shlex.join(options)}"


def _relative(path: Path) -> str:
    """Return the path as seen from the current folder, if it is below it."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _program(name: str) -> str:
    """Return what to type for this environment's program `name`."""
    path = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(path) else _relative(path)


def _command() -> str:
    """Return the command as it was typed, without `--rerun`, which must not be repeated."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word == "--rerun":
            next(words, None)
        elif not word.startswith("--rerun="):
            kept.append(word)
    return f"{_program('python')} -m orchestrator {shlex.join(kept)}"
