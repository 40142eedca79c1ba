"""`run` and `plan`: train the runs, or print what `run` would do."""

import logging
import os
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    PIPED_WIDTH,
    JobsOption,
    JsonOption,
    SeedsOption,
    SessionOptions,
    TableOption,
    command,
    store_options,
)
from orchestrator.errors import ExitCode, RequestError
from orchestrator.formatting import (
    format_command,
    format_path,
    format_program,
    repeat_command,
    to_json,
)
from orchestrator.masking import SafeFormatter

if TYPE_CHECKING:
    from orchestrator.driver.run import RunOutcome
    from orchestrator.driver.session import Session


@command
def run(
    options: SessionOptions,
    seeds: SeedsOption = None,
    jobs: JobsOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Path or URI of the checkpoints, accessible from every machine of the cluster."
            "  [default: ray/ in the results]"
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(min=0, help="Number of retries of a run whose worker was lost.")
    ] = 3,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="Stop all runs when one fails.")
    ] = False,
    rerun: Annotated[
        str | None,
        typer.Option(metavar="IDS", help="Delete the stored results of these runs first."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Print the plan and stop.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only failures and errors.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print the log messages of all libraries.")
    ] = False,
) -> None:
    """Train the runs of SPEC and write the tables.

    Finished runs are kept, interrupted ones continue from their last checkpoint.
    """
    from orchestrator.driver.run import run_session

    if verbose:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(SafeFormatter())
        logging.getLogger().addHandler(handler)
    more = {"storage": storage, "retries": retries, "fail_fast": fail_fast, "rerun": rerun}
    with options.open_session(quiet=quiet, seeds=seeds, jobs=jobs, **more) as session:
        if dry_run:
            print_plan(session)
            return
        outcome = run_session(session)
        raise typer.Exit(report_outcome(outcome, session))


@command
def plan(
    options: SessionOptions,
    seeds: SeedsOption = None,
    jobs: JobsOption = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Such as 40gpuh or 100usd: what to train to resolve most cells."),
    ] = None,
    table: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what `run` would do with each run.

    With --budget, print instead which runs to train first.
    """
    if table and not budget:
        raise typer.BadParameter("--table requires --budget; select single runs with --only")
    if budget and seeds is not None:
        raise RequestError(
            f"--seeds {seeds}: cannot be combined with --budget, which chooses the seeds"
        )
    with options.open_session(quiet=as_json, seeds=seeds, jobs=jobs) as session:
        if budget:
            from orchestrator.cli.missing import print_budget

            print_budget(session, budget, table, as_json=as_json)
        else:
            print_plan(session, as_json=as_json)


def print_plan(session: "Session", *, as_json: bool = False) -> None:
    """Print the plan; nothing is written, except that the schema of an old store is updated."""
    from rich.console import Console

    from orchestrator.cli.console import plan_table
    from orchestrator.planning.plan import as_rows
    from orchestrator.store import Store, exists

    location = session.store_location
    plan = session.plan(Store(location) if exists(location) else None)
    if as_json:
        typer.echo(to_json(as_rows(plan)))
    else:
        width = None if sys.stdout.isatty() else PIPED_WIDTH
        table = plan_table(plan, session.experiment.profile)
        Console(file=sys.stdout, width=width).print(table)
    session.preflight(plan)


def report_outcome(outcome: "RunOutcome", session: "Session") -> int:
    """Print the results of the runs, the file of the tables and the next command.

    Returns the exit code. After a signal, `main` prints the next command.
    """
    from orchestrator.store import Status

    message = session.observer.message
    if outcome.problem:
        message(
            f"{outcome.problem}\nThe store is complete; `sync` sends it to MLflow.", important=True
        )
    counts = Counter(str(run.status) for run in outcome.runs)
    message(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + ".")
    message(f"Tables: {format_path(outcome.tables)}")
    if outcome.signal is not None:
        return 128 + outcome.signal
    unsound = [run for run in outcome.runs if run.status is Status.UNSOUND]
    for run in unsound:
        message(f"Unsound, not in the tables: run {run.run_id}, {run.error}", important=True)
    failed = [run for run in outcome.runs if run.status in (Status.FAILED, Status.DIVERGED)]
    if failed:
        names = ", ".join(f"{run.run_id} ({run.status})" for run in failed)
        message(f"Not finished: {names}. Logs: {format_path(session.logs)}/", important=True)
    if failed or unsound:
        return ExitCode.UNFINISHED
    if not outcome.done:
        message(f"Not all runs are finished. The same command continues: {repeat_command()}")
        return ExitCode.UNFINISHED
    message(f"Print them: {_report_command(session)}")
    if outcome.problem:
        return ExitCode.FAILURE
    message(f"Every run with its curves: {_mlflow_command(session)}")
    return ExitCode.OK


def _report_command(session: "Session") -> str:
    """Return the `report` command of this session."""
    spec, options = format_path(session.options.spec), session.whole.options
    given = store_options(session.options)
    return format_command("report", spec, *options, *given, python=format_program("python"))


def _mlflow_command(session: "Session") -> str:
    """Return the command that shows the runs; without an option, it reads the current folder."""
    from orchestrator.tracking import tracking_folder, tracking_uri

    folder = tracking_folder(session.options.spec, session.results).absolute()
    usual = folder == Path.cwd() or "MLFLOW_TRACKING_URI" in os.environ
    option = "" if usual else f" --backend-store-uri {shlex.quote(tracking_uri(folder))}"
    return f"{format_program('mlflow')} ui{option}"
