"""Commands that train, plan, or bring in what was trained."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.options import (
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
    SpecOption,
    StoreOption,
    TableOption,
    VerboseOption,
    app,
    open_store,
)
from orchestrator.numbers import number_of

if TYPE_CHECKING:
    from orchestrator.invocation import Request


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
    from orchestrator.invocation import Invocation
    from orchestrator.training import run as train

    with Invocation(_request(context)) as invocation:
        raise typer.Exit(invocation.print_plan() if dry_run else train(invocation))


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
    from orchestrator.budget import BudgetError
    from orchestrator.invocation import Invocation

    if table and not budget:
        raise typer.BadParameter("--table goes with --budget; for single runs there is --only")
    if budget and seeds is not None:
        raise BudgetError(f"--seeds {seeds}: does not go with --budget, which chooses the seeds")
    with Invocation(_request(context, quiet=as_json)) as invocation:
        if budget:
            raise typer.Exit(invocation.print_budget(budget, table, as_json=as_json))
        raise typer.Exit(invocation.print_plan(as_json=as_json))


@app.command()
def missing(
    context: typer.Context,
    spec: SpecArgument = SPEC,
    profile: ProfileOption = None,
    only: OnlyOption = None,
    settings: SetOption = None,
    address: AddressOption = "local",
    results: ResultsOption = None,
    store: StoreOption = None,
    table: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the cells that are not settled, the runs that would settle them, and their cost."""
    from orchestrator.invocation import Invocation

    with Invocation(_request(context, quiet=as_json)) as invocation:
        raise typer.Exit(invocation.print_missing(table, as_json=as_json))


@app.command()
def validate(spec: SpecArgument = SPEC) -> None:
    """Check SPEC and print every mistake in it, with its line."""
    from orchestrator.specfile import SpecFile

    file = SpecFile(spec)
    cells = sum(len(row.published) for table in file.file.tables for row in table.rows)
    typer.echo(
        f"{spec}: valid: {number_of(len(file.file.runs), 'run')}, profiles "
        f"{', '.join(file.profiles)}, {number_of(len(file.file.tables), 'table')} with "
        f"{number_of(cells, 'published cell')}"
    )


@app.command()
def data(
    spec: SpecArgument = SPEC,
    profile: Annotated[str | None, typer.Option(help="Just this profile.")] = None,
    only: OnlyOption = None,
    settings: SetOption = None,
) -> None:
    """Find, check and keep the images that SPEC needs, in all profiles or in one."""
    from orchestrator.images import data_root, prepare_all
    from orchestrator.specfile import SpecFile

    file = SpecFile(spec)
    chosen = [profile] if profile else file.profiles
    experiments = [file.experiment(name, settings or ()).chosen(only, None) for name in chosen]
    datasets = {run.train.data.name for experiment in experiments for run in experiment.runs}
    prepare_all(experiments[0], datasets)
    typer.echo(f"{', '.join(sorted(datasets))}: checked, in {data_root(experiments[0])}")


@app.command()
def ingest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `python -m aol` wrote.")],
    spec: SpecOption = SPEC,
    results: ResultsOption = None,
    store: StoreOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take DIR's numbers where the store has others."),
    ] = False,
) -> None:
    """Take runs that were trained without the orchestrator into the store and MLflow."""
    from orchestrator.folders import folders_in
    from orchestrator.ingest import IngestError
    from orchestrator.ingest import ingest as take_all
    from orchestrator.publishing import show_taken
    from orchestrator.specfile import SpecFile
    from orchestrator.store import Store

    file, folders = SpecFile(spec), folders_in(folder)
    place = results or spec.parent / "results"
    opened = Store(store or str(place / "store.db"), exclusive=True)
    opened.recover()
    runs, problems = take_all(folders, opened, replace=replace)
    for found, fresh in runs:
        trained = number_of(len(found.epochs), "epoch")
        what = f"{found.status}, {trained}" if fresh else "there already"
        typer.echo(f"run {found.run.id} {found.run.name}, seed {found.run.train.seed}: {what}")
    if complaint := show_taken(opened, file, place, [found.run.key for found, _ in runs]):
        typer.echo(complaint, err=True)
    if problems:
        raise IngestError("\n".join(problems))


@app.command()
def sync(
    spec: SpecArgument = SPEC, results: ResultsOption = None, store: StoreOption = None
) -> None:
    """Bring MLflow up to what the store holds; a lost MLflow database is made anew."""
    from orchestrator.publishing import publish_all, tracker_of
    from orchestrator.specfile import SpecFile

    opened, file = open_store(spec, results, store), SpecFile(spec)
    tracker = tracker_of(file)
    typer.echo(f"Sending to MLflow at {tracker.uri} ...", err=True)
    sent = tracker.send(opened)
    publish_all(tracker, opened, file, results or spec.parent / "results")
    typer.echo(f"{number_of(sent, 'run is', 'runs are')} in MLflow at {tracker.uri}")


def _request(context: typer.Context, **changes: bool) -> "Request":
    """The options of `run` or `plan`, which bear the names of the request's fields."""
    from orchestrator.invocation import Request

    names = {field.name for field in fields(Request)}
    given = {name: value for name, value in context.params.items() if name in names}
    given["settings"] = tuple(given["settings"] or ())
    return Request(**given | changes)
