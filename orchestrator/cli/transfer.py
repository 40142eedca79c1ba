"""`merge`, `ingest`, `bundle`, `verify`, `sync`: results between stores, files and MLflow."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import JsonOption, ProfileOptions, StoreOptions, app, command
from orchestrator.errors import CheckFailedError, RecordError, TrackingError
from orchestrator.formatting import pluralize, to_json, with_note
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.sharing.verify import VerificationResult


@command
def merge(
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="Path or URL of a store, or a bundle.")
    ],
    options: StoreOptions,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let OTHER's runs replace conflicting ones.")
    ] = False,
) -> None:
    """Copy the runs of another store or of a bundle.

    They are added to this store and to MLflow; OTHER is only read.
    """
    from orchestrator.sharing.bundle import open_results
    from orchestrator.sharing.merge import MergeResult, merge_stores, summarize_merge
    from orchestrator.tracking.publish import publish_imported

    file = SpecFile(options.spec)
    with open_results(other) as theirs, closing(Store(options.location, exclusive=True)) as ours:
        ours.recover()
        outcomes = merge_stores(theirs, ours, replace=replace)
        for outcome in outcomes:
            if outcome.result is not MergeResult.REJECTED:
                typer.echo(outcome)
        typer.echo(summarize_merge(outcomes))
        shared = [outcome.run.key for outcome in outcomes if outcome.result.in_store]
        problem = publish_imported(ours, file, options.results_folder, shared)
    refused = [str(outcome) for outcome in outcomes if outcome.result is MergeResult.REJECTED]
    _raise_problems(refused, problem)


@command
def ingest(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that `python -m aol` wrote.")
    ],
    options: StoreOptions,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let DIR's runs replace conflicting ones.")
    ] = False,
) -> None:
    """Copy runs that `python -m aol` trained.

    They are added to the store and to MLflow.
    """
    from orchestrator.sharing.merge import ingest_folders
    from orchestrator.sharing.run_folder import find_run_folders
    from orchestrator.tracking.publish import publish_imported

    file, folders = SpecFile(options.spec), find_run_folders(folder)
    store = Store(options.location, exclusive=True)
    store.recover()
    runs, problems = ingest_folders(folders, store, replace=replace)
    for found, is_new in runs:
        epochs = pluralize(len(found.epochs), "epoch")
        outcome = f"{found.status}, {epochs}" if is_new else "unchanged"
        typer.echo(f"run {found.run.id} {found.run.name}, seed {found.run.train.seed}: {outcome}")
    keys = [found.run.key for found, _ in runs]
    _raise_problems(problems, publish_imported(store, file, options.results_folder, keys))


def _raise_problems(rejected: Sequence[str], tracking: str | None) -> None:
    """Raise RecordError or TrackingError if runs were not imported or not sent to MLflow."""
    if rejected:
        raise RecordError("\n".join([*([tracking] if tracking else []), *rejected]))
    if tracking:
        raise TrackingError(tracking)


@command
def bundle(
    target: Annotated[Path, typer.Argument(metavar="FILE.zip", help="The bundle to write.")],
    options: ProfileOptions,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.zip.")] = False,
) -> None:
    """Write a profile's results to one file.

    It contains the store, margins and report, so that `verify` can check it anywhere.
    """
    from aol.provenance import file_sha256
    from orchestrator.sharing.bundle import write_bundle

    store, experiment = options.open_profile()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = write_bundle(experiment, store, target, at=now, force=force)
    size = target.stat().st_size / 1e6
    typer.echo(
        f"{target}: profile {experiment.profile}, {pluralize(len(manifest.files), 'file')}, "
        f"{size:.1f} MB"
    )
    typer.echo(f"SHA-256 {file_sha256(target)}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="A bundle that `bundle` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Check a bundle and print each discrepancy.

    Every cell is recomputed from the margins in the bundle.
    """
    from aol.provenance import file_sha256
    from orchestrator.sharing.archive import printable
    from orchestrator.sharing.verify import verify_bundle

    result = verify_bundle(file)
    if as_json:
        typer.echo(to_json({"sha256": file_sha256(file), **_as_record(result)}))
        raise typer.Exit(CheckFailedError.exit_code if result.discrepancies else 0)
    manifest = result.manifest
    settings = "".join(f" --set {setting}" for setting in manifest.settings)
    title = f"{file}: {manifest.experiment}, profile {manifest.profile}{settings}"
    typer.echo(with_note(printable(result.note), title))
    typer.echo(
        f"written {manifest.created_at} by version {manifest.program} "
        f"({manifest.commit or 'no commit'})"
    )
    typer.echo(f"SHA-256 {file_sha256(file)}")
    for table in result.tables:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in table.verdicts.items())
        measured = pluralize(table.measured, "measured cell")
        typer.echo(
            f"{printable(table.title)}: {table.confirmed} of {measured} follow from the margins"
            + (f"; {verdicts}" if verdicts else "")
        )
    if result.discrepancies:
        raise CheckFailedError("\n".join(map(printable, result.discrepancies)))
    typer.echo("Everything in it agrees.")


def _as_record(result: "VerificationResult") -> dict[str, object]:
    record = asdict(result)
    del record["manifest"]
    return {"bundle": result.manifest.model_dump(exclude={"files"}), **record}


@command
def sync(options: StoreOptions) -> None:
    """Send to MLflow what it lacks.

    A lost MLflow database is created again from the store.
    """
    from orchestrator.tracking import tracker_for
    from orchestrator.tracking.publish import publish_all

    store, file = options.open_store(), SpecFile(options.spec)
    tracker = tracker_for(file.path, file.file.name, options.results_folder)
    typer.echo(f"Sending to MLflow at {tracker.uri} ...", err=True)
    sent = tracker.send(store)
    publish_all(tracker, store, file, options.results_folder)
    typer.echo(f"{pluralize(sent, 'run is', 'runs are')} in MLflow at {tracker.uri}")
