"""Commands that hand results on: between stores, and as bundles that anybody can check."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.options import ResultsOption, SpecOption, StoreOption, app


@app.command()
def merge(
    other: Annotated[
        str, typer.Argument(metavar="OTHER", help="Path or SQLAlchemy URL of another store.")
    ],
    spec: SpecOption = Path("experiments.yaml"),
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
        typer.echo(f"{counted(outcomes)} of {len(outcomes)} runs there")
        shared = [outcome.run.key for outcome in outcomes if outcome.fate.here]
        if complaint := show_taken(ours, file, place, shared):
            typer.echo(complaint, err=True)
    if refused := [str(outcome) for outcome in outcomes if outcome.fate is Fate.REFUSED]:
        raise MergeError("\n".join(refused))
