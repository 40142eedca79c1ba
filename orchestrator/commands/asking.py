"""Commands that answer what somebody asks of the results."""

from typing import Annotated

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


@app.command()
def explain(
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="Like CIFAR-10/AOL-Small/CRA 1, or a run ID.")
    ],
    column: Annotated[
        str | None, typer.Argument(metavar="COLUMN", help="Just this one, like 'Std Acc'.")
    ] = None,
    spec: SpecOption = SPEC,
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    replicate: Annotated[
        int | None, typer.Option(min=0, help="Just this one of the run's seeds.")
    ] = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print the patch of the run's source to its commit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what a cell of the tables rests on, down to the commands that make it again."""
    from orchestrator import explaining, telling
    from orchestrator.report import make_report

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    given = {"--results": results and str(results), "--store": store}
    found = explaining.explain(
        make_report(experiment, opened),
        opened,
        cell,
        column,
        replicate=replicate,
        places=[part for pair in given.items() if pair[1] for part in pair if part],
    )
    if diff:
        typer.echo(explaining.patch_of(found), nl=False)
    else:
        typer.echo((telling.as_json if as_json else telling.as_text)(experiment, found))
