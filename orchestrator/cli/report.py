"""Commands that read what was trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.options import (
    SPEC,
    ResultsOption,
    SetOption,
    SpecArgument,
    StoreOption,
    TrainedProfileOption,
    app,
    opened_profile,
)
from orchestrator.formatting import pluralize

if TYPE_CHECKING:
    from orchestrator.analysis.report import Report
    from orchestrator.reporting.render import Format
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
    from orchestrator.analysis.report import make_report
    from orchestrator.errors import CheckFailedError
    from orchestrator.spec.experiment import CUSTOM

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    made = make_report(experiment, opened)
    _write(made, opened, results or spec.parent / "results", form, figures=figures)
    if not profile and not settings and opened.newest_profile() == CUSTOM:
        typer.echo("trained last was a run with --set: give `report` the same --set", err=True)
    for line in made.violations:
        typer.secho(f"broken: {line}", fg="red", err=True)
    if check and made.violations:
        broken = pluralize(len(made.violations), "invariant does", "invariants do")
        raise CheckFailedError(f"{broken} not hold")


def _write(
    made: "Report", store: "Store", place: Path, form: "Format | Literal['html']", *, figures: bool
) -> None:
    """Write a report, with its figures if asked for or on the page; print it if it is text."""
    from orchestrator.reporting.figures import draw_figures
    from orchestrator.reporting.render import render, write_report

    folder = place / made.experiment.profile
    if form == "html":
        from orchestrator.reporting.html import write_page

        path, drawn = write_page(made, store, folder)
    else:
        drawn = draw_figures(made, store, folder / "figures") if figures else []
        path = write_report(made, place, form)
        typer.echo(render(made, form))
    if figures or form == "html":
        typer.echo(f"{pluralize(len(drawn), 'figure')} in {folder / 'figures'}", err=True)
    typer.echo(f"written to {path}", err=True)
