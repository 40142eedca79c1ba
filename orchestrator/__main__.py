"""The commands: parse, call, print. Heavy libraries are imported inside the commands."""

import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator import environment

if TYPE_CHECKING:
    from orchestrator.invocation import Request
    from orchestrator.store import Store

app = typer.Typer(
    name="orchestrator",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train the paper's runs, keep every number, print its tables.",
)

SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML file of experiments.")]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="Which profile of SPEC; by default what fits the cluster."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of all runs; repeatable."),
]
OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="IDS", help="Just these runs, like 0,20-24.")
]
SeedsOption = Annotated[
    str | None,
    typer.Option(
        "--seeds", metavar="K", help="Replicates like 0..4; number k trains with seed + 1000 k."
    ),
]
ResultsOption = Annotated[
    Path | None,
    typer.Option("--results", help="Where results go.  [default: results/ beside SPEC]"),
]
StoreOption = Annotated[
    str | None,
    typer.Option("--store", help="Path or SQLAlchemy URL.  [default: store.db in the results]"),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", min=1, help="At most so many runs at once.")
]
AddressOption = Annotated[
    str,
    typer.Option(
        "--address", help="The Ray cluster: local starts its own, else auto or HOST:PORT."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Only the result and failures.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="More about what happens.")]


@app.command()
def run(
    context: typer.Context,
    spec: SpecArgument,
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
    spec: SpecArgument,
    profile: ProfileOption = None,
    only: OnlyOption = None,
    seeds: SeedsOption = None,
    settings: SetOption = None,
    jobs: JobsOption = None,
    address: AddressOption = "local",
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what `run` would do with each run, and why."""
    from orchestrator.invocation import Invocation

    with Invocation(_request(context, quiet=as_json)) as invocation:
        raise typer.Exit(invocation.print_plan(as_json=as_json))


@app.command()
def validate(spec: SpecArgument) -> None:
    """Check SPEC and print every mistake in it, with its line."""
    from orchestrator.specfile import SpecFile

    file = SpecFile(spec)
    cells = sum(len(row.published) for table in file.file.tables for row in table.rows)
    typer.echo(
        f"{spec}: valid: {len(file.file.runs)} runs, profiles {', '.join(file.profiles)}, "
        f"{len(file.file.tables)} tables with {cells} published cells"
    )


@app.command()
def data(
    spec: SpecArgument,
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
def report(
    spec: SpecArgument,
    profile: Annotated[
        str | None, typer.Option(help="Which profile of SPEC; by default that trained last.")
    ] = None,
    settings: SetOption = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    form: Annotated[
        Literal["md", "csv", "json"], typer.Option("--format", help="What to write and print.")
    ] = "md",
) -> None:
    """Write the paper's tables from the store to results/PROFILE/ and print them."""
    from orchestrator.cells import fill_tables, newest_profile
    from orchestrator.report import render, write
    from orchestrator.spec import CUSTOM
    from orchestrator.specfile import SpecFile

    file = SpecFile(spec)
    opened = _open(spec, results, store)
    chosen = profile or newest_profile(opened, file.profiles) or file.profiles[0]
    experiment = file.experiment(chosen, settings or ())
    tables = fill_tables(experiment, opened)
    path = write(experiment, tables, results or spec.parent / "results", form)
    typer.echo(render(experiment, tables, form))
    typer.echo(f"written to {path}", err=True)
    if not profile and not settings and newest_profile(opened) == CUSTOM:
        typer.echo("trained last was a run with --set: give `report` the same --set", err=True)


@app.command()
def status(
    spec: SpecArgument,
    profile: Annotated[str | None, typer.Option(help="Only the runs of this profile.")] = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what each run is doing now; from any terminal, also while `run` goes on."""
    from orchestrator.status import print_status, watch_status

    if watch and as_json:
        raise typer.BadParameter("--watch draws a table; for JSON call again without it")
    opened = _open(spec, results, store)
    known = sorted({run.profile for run in opened.runs()})
    if profile and profile not in known:
        raise typer.BadParameter(f"no run of the profile {profile!r}, only of {', '.join(known)}")
    if watch:
        watch_status(opened, profile)
    print_status(opened, profile, as_json=as_json)


@app.command()
def ingest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `python -m aol` wrote.")],
    spec: Annotated[Path, typer.Option(help="The YAML file the runs are of.")] = Path(
        "experiments.yaml"
    ),
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
    from orchestrator.publishing import publish_all
    from orchestrator.specfile import SpecFile
    from orchestrator.store import Store
    from orchestrator.tracking import Tracker, TrackingError, tracking_uri

    file, folders = SpecFile(spec), folders_in(folder)
    place = results or spec.parent / "results"
    opened = Store(store or str(place / "store.db"), exclusive=True)
    opened.recover()
    runs, problems = take_all(folders, opened, replace=replace)
    for found, fresh in runs:
        what = f"{found.status}, {len(found.epochs)} epochs" if fresh else "there already"
        typer.echo(f"run {found.run.id} {found.run.name}, seed {found.run.train.seed}: {what}")
    tracker = Tracker(tracking_uri(spec.parent), file.file.name, spec.parent / "mlruns")
    try:
        tracker.send(opened, [found.run.key for found, _ in runs])
        publish_all(tracker, opened, file, place)
    except TrackingError as error:
        typer.echo(f"{error}\nThe store has everything; `sync` sends it to MLflow.", err=True)
    if problems:
        raise IngestError("\n".join(problems))


@app.command()
def sync(spec: SpecArgument, results: ResultsOption = None, store: StoreOption = None) -> None:
    """Bring MLflow up to what the store holds; a lost MLflow database is made anew."""
    from orchestrator.publishing import publish_all
    from orchestrator.specfile import SpecFile
    from orchestrator.tracking import Tracker, tracking_uri

    opened, file = _open(spec, results, store), SpecFile(spec)
    tracker = Tracker(tracking_uri(spec.parent), file.file.name, spec.parent / "mlruns")
    typer.echo(f"Sending to MLflow at {tracker.uri} ...", err=True)
    sent = tracker.send(opened)
    publish_all(tracker, opened, file, results or spec.parent / "results")
    typer.echo(f"{sent} runs are in MLflow at {tracker.uri}")


def _request(context: typer.Context, **changes: bool) -> "Request":
    """The options of `run` or `plan`, which bear the names of the request's fields."""
    from orchestrator.invocation import Request

    names = {field.name for field in fields(Request)}
    given = {name: value for name, value in context.params.items() if name in names}
    given["settings"] = tuple(given["settings"] or ())
    return Request(**given | changes)


def _open(spec: Path, results: Path | None, store: str | None) -> "Store":
    """An existing store. Raises: StoreError, SpecError if there is no file `spec`."""
    from orchestrator.document import SpecError
    from orchestrator.store import Store, StoreError, exists

    if not spec.is_file():
        raise SpecError([f"{spec}: no such file"])

    location = store or str((results or spec.parent / "results") / "store.db")
    if not exists(location):
        raise StoreError(f"there is no store at {location} yet; `run` makes one")
    return Store(location)


def main() -> None:
    """Run the command line; our own errors become one line, anything else keeps its traceback.

    Our errors say their exit code: 2 for mistakes in the input, 1 for what failed in the world.
    """
    environment.prepare()
    try:
        app(prog_name="python -m orchestrator")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        for line in str(error).splitlines():
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
