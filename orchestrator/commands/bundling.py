"""Commands that hand results on: between stores, and as bundles that anybody can check."""

import json
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.options import (
    SPEC,
    JsonOption,
    ResultsOption,
    SetOption,
    SpecOption,
    StoreOption,
    TrainedProfileOption,
    app,
    opened_profile,
)
from orchestrator.numbers import number_of

if TYPE_CHECKING:
    from orchestrator.verifying import Verified


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
    from orchestrator.merging import Fate, MergeError, counted
    from orchestrator.merging import merge as take_all
    from orchestrator.publishing import show_taken
    from orchestrator.specfile import SpecFile
    from orchestrator.store import Store, snapshot

    file, place = SpecFile(spec), results or spec.parent / "results"
    location = store or str(place / "store.db")
    with snapshot(other) as theirs, closing(Store(location, exclusive=True)) as ours:
        ours.recover()
        outcomes = take_all(theirs, ours, replace=replace)
        for outcome in outcomes:
            if outcome.fate is not Fate.REFUSED:
                typer.echo(outcome)
        typer.echo(f"{counted(outcomes)} of {number_of(len(outcomes), 'run')} there")
        shared = [outcome.run.key for outcome in outcomes if outcome.fate.here]
        if complaint := show_taken(ours, file, place, shared):
            typer.echo(complaint, err=True)
    if refused := [str(outcome) for outcome in outcomes if outcome.fate is Fate.REFUSED]:
        raise MergeError("\n".join(refused))


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
    from orchestrator.archive import sha256
    from orchestrator.bundling import bundle as write

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = write(experiment, opened, target, at=now, force=force)
    size = target.stat().st_size / 1e6
    typer.echo(
        f"{target}: profile {experiment.profile}, {number_of(len(manifest.files), 'file')}, "
        f"{size:.1f} MB"
    )
    typer.echo(f"SHA-256 {sha256(target)}")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="What `bundle` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Derive every cell of a bundle anew from its margins, and name what does not agree."""
    from orchestrator.archive import printable, sha256
    from orchestrator.spec import noted
    from orchestrator.verifying import DiscrepancyError
    from orchestrator.verifying import verify as check

    found = check(file)
    if as_json:
        typer.echo(json.dumps({"sha256": sha256(file), **_as_record(found)}, indent=2))
        raise typer.Exit(DiscrepancyError.exit_code if found.discrepancies else 0)
    made = found.manifest
    settings = "".join(f" --set {setting}" for setting in made.settings)
    note = printable(found.note)
    typer.echo(noted(note, f"{file}: {made.experiment}, profile {made.profile}{settings}"))
    typer.echo(f"made {made.created_at} by version {made.program} ({made.commit or 'no commit'})")
    typer.echo(f"SHA-256 {sha256(file)}")
    for table in found.tables:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in table.verdicts.items())
        measured = number_of(table.measured, "measured cell")
        title = printable(table.title)
        typer.echo(f"{title}: {table.confirmed} of {measured} follow from the margins; {verdicts}")
    for note in found.notes:
        typer.echo(f"note: {note}")
    if found.discrepancies:
        raise DiscrepancyError("\n".join(map(printable, found.discrepancies)))
    typer.echo("Every number in it agrees." if found.notes else "Everything in it agrees.")


def _as_record(found: "Verified") -> dict[str, object]:
    manifest = found.manifest.model_dump(exclude={"files"})
    return {"bundle": manifest, **{k: v for k, v in asdict(found).items() if k != "manifest"}}
