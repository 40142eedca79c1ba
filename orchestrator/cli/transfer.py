"""Commands that hand results on: between stores, and as bundles that anybody can check."""

from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    SPEC,
    JsonOption,
    ResultsOption,
    SetOption,
    SpecArgument,
    SpecOption,
    StoreOption,
    TrainedProfileOption,
    app,
    open_store,
    opened_profile,
)
from orchestrator.formatting import pluralize, to_json

if TYPE_CHECKING:
    from orchestrator.sharing.verify import VerificationResult


@app.command()
def merge(
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="Path or SQLAlchemy URL of another store.")
    ],
    spec: SpecOption = SPEC,
    results: ResultsOption = None,
    store: StoreOption = None,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="Take OTHER's runs where the two stores contradict."),
    ] = False,
) -> None:
    """Take the runs of another store, which is only read, into this one and into MLflow."""
    from orchestrator.errors import RecordError
    from orchestrator.sharing.merge import MergeResult, summarize_merge
    from orchestrator.sharing.merge import merge_stores as take_all
    from orchestrator.spec.loader import SpecFile
    from orchestrator.store import Store, snapshot
    from orchestrator.tracking.publish import publish_imported

    file, place = SpecFile(spec), results or spec.parent / "results"
    location = store or str(place / "store.db")
    with snapshot(other) as theirs, closing(Store(location, exclusive=True)) as ours:
        ours.recover()
        outcomes = take_all(theirs, ours, replace=replace)
        for outcome in outcomes:
            if outcome.result is not MergeResult.REJECTED:
                typer.echo(outcome)
        typer.echo(summarize_merge(outcomes))
        shared = [outcome.run.key for outcome in outcomes if outcome.result.in_store]
        if complaint := publish_imported(ours, file, place, shared):
            typer.echo(complaint, err=True)
    if refused := [str(outcome) for outcome in outcomes if outcome.result is MergeResult.REJECTED]:
        raise RecordError("\n".join(refused))


@app.command()
def bundle(
    target: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The bundle to write.")],
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    spec: SpecOption = SPEC,
    results: ResultsOption = None,
    store: StoreOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.zip.")] = False,
) -> None:
    """Put a profile's results, margins and report into one file that `verify` checks anywhere."""
    from orchestrator.sharing.archive import sha256
    from orchestrator.sharing.bundle import write_bundle as write

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = write(experiment, opened, target, at=now, force=force)
    size = target.stat().st_size / 1e6
    typer.echo(
        f"{target}: profile {experiment.profile}, {pluralize(len(manifest.files), 'file')}, "
        f"{size:.1f} MB"
    )
    typer.echo(f"SHA-256 {sha256(target)}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="What `bundle` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Derive every cell of a bundle anew from its margins, and name what does not agree."""
    from orchestrator.errors import CheckFailedError
    from orchestrator.formatting import with_note
    from orchestrator.sharing.archive import printable, sha256
    from orchestrator.sharing.verify import verify_bundle as check

    found = check(file)
    if as_json:
        typer.echo(to_json({"sha256": sha256(file), **_as_record(found)}))
        raise typer.Exit(CheckFailedError.exit_code if found.discrepancies else 0)
    made = found.manifest
    settings = "".join(f" --set {setting}" for setting in made.settings)
    note = printable(found.note)
    typer.echo(with_note(note, f"{file}: {made.experiment}, profile {made.profile}{settings}"))
    typer.echo(f"made {made.created_at} by version {made.program} ({made.commit or 'no commit'})")
    typer.echo(f"SHA-256 {sha256(file)}")
    for table in found.tables:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in table.verdicts.items())
        measured = pluralize(table.measured, "measured cell")
        title = printable(table.title)
        typer.echo(f"{title}: {table.confirmed} of {measured} follow from the margins; {verdicts}")
    if found.discrepancies:
        raise CheckFailedError("\n".join(map(printable, found.discrepancies)))
    typer.echo("Everything in it agrees.")


def _as_record(found: "VerificationResult") -> dict[str, object]:
    manifest = found.manifest.model_dump(exclude={"files"})
    return {"bundle": manifest, **{k: v for k, v in asdict(found).items() if k != "manifest"}}


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
    from orchestrator.errors import RecordError
    from orchestrator.sharing.merge import ingest_folders as take_all
    from orchestrator.sharing.run_folder import find_run_folders
    from orchestrator.spec.loader import SpecFile
    from orchestrator.store import Store
    from orchestrator.tracking.publish import publish_imported

    file, folders = SpecFile(spec), find_run_folders(folder)
    place = results or spec.parent / "results"
    opened = Store(store or str(place / "store.db"), exclusive=True)
    opened.recover()
    runs, problems = take_all(folders, opened, replace=replace)
    for found, fresh in runs:
        trained = pluralize(len(found.epochs), "epoch")
        what = f"{found.status}, {trained}" if fresh else "there already"
        typer.echo(f"run {found.run.id} {found.run.name}, seed {found.run.train.seed}: {what}")
    if complaint := publish_imported(opened, file, place, [found.run.key for found, _ in runs]):
        typer.echo(complaint, err=True)
    if problems:
        raise RecordError("\n".join(problems))


@app.command()
def sync(
    spec: SpecArgument = SPEC, results: ResultsOption = None, store: StoreOption = None
) -> None:
    """Bring MLflow up to what the store holds; a lost MLflow database is made anew."""
    from orchestrator.spec.loader import SpecFile
    from orchestrator.tracking import tracker_for
    from orchestrator.tracking.publish import publish_all

    opened, file = open_store(spec, results, store), SpecFile(spec)
    tracker = tracker_for(file.path, file.file.name)
    typer.echo(f"Sending to MLflow at {tracker.uri} ...", err=True)
    sent = tracker.send(opened)
    publish_all(tracker, opened, file, results or spec.parent / "results")
    typer.echo(f"{pluralize(sent, 'run is', 'runs are')} in MLflow at {tracker.uri}")
