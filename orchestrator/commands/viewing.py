"""Commands that read what was trained."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.commands.options import (
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
from orchestrator.numbers import number_of


@app.command()
def report(
    spec: SpecArgument,
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    form: Annotated[
        Literal["md", "csv", "json", "tex", "html"],
        typer.Option("--format", help="What to write, and but for html to print."),
    ] = "md",
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw the figures, too, as PNG and SVG.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 4 if a finished run breaks an invariant.")
    ] = False,
) -> None:
    """Write the paper's tables from the store to results/PROFILE/ and print them."""
    from orchestrator.figures import draw_figures
    from orchestrator.report import BrokenError, make_report, render, write
    from orchestrator.spec import CUSTOM

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    made = make_report(experiment, opened)
    place = results or spec.parent / "results"
    folder = place / experiment.profile
    if form == "html":
        from orchestrator.page import write_page

        path, drawn = write_page(made, opened, folder)
    else:
        drawn = draw_figures(made, opened, folder / "figures") if figures else []
        path = write(made, place, form)
        typer.echo(render(made, form))
    if figures or form == "html":
        typer.echo(f"{number_of(len(drawn), 'figure')} in {folder / 'figures'}", err=True)
    typer.echo(f"written to {path}", err=True)
    if not profile and not settings and opened.newest_profile() == CUSTOM:
        typer.echo("trained last was a run with --set: give `report` the same --set", err=True)
    for line in made.broken:
        typer.secho(f"broken: {line}", fg="red", err=True)
    if check and made.broken:
        broken = number_of(len(made.broken), "invariant does", "invariants do")
        raise BrokenError(f"{broken} not hold")


@app.command()
def status(
    spec: SpecArgument,
    profile: Annotated[str | None, typer.Option(help="Only the runs of this profile.")] = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until interrupted.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every run, also where there are hundreds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what each run is doing now; from any terminal, also while `run` goes on."""
    from orchestrator.status import print_status, watch_status

    if watch and (as_json or everything):
        raise typer.BadParameter("--watch draws a table; for JSON or --all call again without it")
    opened = open_store(spec, results, store)
    known = opened.profiles()
    if profile and profile not in known:
        raise typer.BadParameter(f"no run of the profile {profile!r}, only of {', '.join(known)}")
    if watch:
        watch_status(opened, profile)
    print_status(opened, profile, as_json=as_json, everything=everything)


@app.command()
def compare(
    first: Annotated[int, typer.Argument(metavar="RUN", help="A run ID.")],
    second: Annotated[int, typer.Argument(metavar="RUN", help="Another.")],
    spec: SpecOption = Path("experiments.yaml"),
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    replicate: Annotated[int, typer.Option(help="Number of the replicates to compare.")] = 0,
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs image by image: McNemar's test, and an interval for the difference."""
    from orchestrator.comparing import compared, comparison_table

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    found = compared(experiment, opened, (first, second), replicate)
    typer.echo(comparison_table(found, (first, second), as_json=as_json))


@app.command()
def cra(
    radius: Annotated[
        str, typer.Option(metavar="RADIUS", help="L2 norm, pixels in [0, 1]: 0.5 or 36/255.")
    ],
    spec: SpecOption = Path("experiments.yaml"),
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print every finished run's certified robust accuracy at any radius."""
    from aol.radius import RadiusError, parsed
    from orchestrator.comparing import cra_table

    try:
        asked = parsed(radius)
    except RadiusError as error:
        raise RadiusError(f"--radius: {error}") from None
    opened, experiment = opened_profile(spec, profile, settings, results, store)
    typer.echo(cra_table(experiment, opened, asked, as_json=as_json))


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="What to read; v_final is a start.")],
    spec: SpecOption = Path("experiments.yaml"),
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what SQL finds in the store; nothing can be written."""
    columns, rows = open_store(spec, results, store).query(sql)
    if as_json:
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        typer.echo(json.dumps(records, indent=2, default=str))
        return
    from tabulate import tabulate

    typer.echo(tabulate(rows, columns))
