"""Commands that read what was trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.commands.options import (
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
from orchestrator.numbers import number_of

if TYPE_CHECKING:
    from orchestrator.report import Format, Report
    from orchestrator.store import Store


@app.command()
def report(
    spec: SpecArgument = SPEC,
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
    from orchestrator.report import BrokenError, make_report
    from orchestrator.spec import CUSTOM

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    made = make_report(experiment, opened)
    _write(made, opened, results or spec.parent / "results", form, figures=figures)
    if not profile and not settings and opened.newest_profile() == CUSTOM:
        typer.echo("trained last was a run with --set: give `report` the same --set", err=True)
    for line in made.broken:
        typer.secho(f"broken: {line}", fg="red", err=True)
    if check and made.broken:
        broken = number_of(len(made.broken), "invariant does", "invariants do")
        raise BrokenError(f"{broken} not hold")


def _write(
    made: "Report", store: "Store", place: Path, form: "Format | Literal['html']", *, figures: bool
) -> None:
    """Write a report, with its figures if asked for or on the page; print it if it is text."""
    from orchestrator.figures import draw_figures
    from orchestrator.report import render, write

    folder = place / made.experiment.profile
    if form == "html":
        from orchestrator.page import write_page

        path, drawn = write_page(made, store, folder)
    else:
        drawn = draw_figures(made, store, folder / "figures") if figures else []
        path = write(made, place, form)
        typer.echo(render(made, form))
    if figures or form == "html":
        typer.echo(f"{number_of(len(drawn), 'figure')} in {folder / 'figures'}", err=True)
    typer.echo(f"written to {path}", err=True)


@app.command()
def status(
    spec: SpecArgument = SPEC,
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
    spec: SpecOption = SPEC,
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    replicate: Annotated[int, typer.Option(min=0, help="Number of the replicates to compare.")] = 0,
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs image by image: McNemar's test, and an interval for the difference."""
    from orchestrator.comparing import compared, comparison_table

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    found = compared(experiment, opened, (first, second), replicate)
    typer.echo(comparison_table(experiment, found, (first, second), as_json=as_json))


@app.command()
def cra(
    radius: Annotated[
        str, typer.Option(metavar="RADIUS", help="L2 norm, pixels in [0, 1]: 0.5 or 36/255.")
    ],
    spec: SpecArgument = SPEC,
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print every finished run's certified robust accuracy at any radius."""
    from aol.radius import RadiusError, parsed
    from orchestrator.comparing import cra_table, without_margins

    try:
        asked = parsed(radius)
    except RadiusError as error:
        raise RadiusError(f"--radius: {error}") from None
    opened, experiment = opened_profile(spec, profile, settings, results, store)
    typer.echo(cra_table(experiment, opened, asked, as_json=as_json))
    for line in without_margins(experiment, opened):
        typer.echo(line, err=True)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(metavar="SQL", help="What to read; v_final is a start.")],
    spec: SpecOption = SPEC,
    results: ResultsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what SQL finds in the store; nothing can be written."""
    from orchestrator.querying import found_json, found_text

    columns, rows = open_store(spec, results, store).query(sql)
    typer.echo((found_json if as_json else found_text)(columns, rows))
