"""`report`: write and print the paper's tables."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.analysis.report import make_report
from orchestrator.cli.options import ProfileOptions, command
from orchestrator.errors import CheckFailedError
from orchestrator.formatting import pluralize
from orchestrator.reporting.render import render, write_report, writing_to
from orchestrator.spec.experiment import CUSTOM

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.analysis.report import Report
    from orchestrator.reporting.render import Format
    from orchestrator.store import Store


@command
def report(
    options: ProfileOptions,
    form: Annotated[
        Literal["md", "csv", "json", "tex", "html"],
        typer.Option("--format", help="Format of the file; all but html are also printed."),
    ] = "md",
    figures: Annotated[
        bool, typer.Option("--figures", help="Also draw the figures, as PNG and SVG.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 4 if a finished run violates an invariant.")
    ] = False,
) -> None:
    """Print the paper's tables from the store.

    They are also written to PROFILE/ in the results.
    """
    store, experiment = options.open_profile()
    made = make_report(experiment, store)
    _write(made, store, options.results_folder, form, figures=figures)
    if not options.profile and not options.settings and store.newest_profile() == CUSTOM:
        typer.echo(
            "The run trained last has changed settings; pass the same --set to report it", err=True
        )
    for line in made.violations:
        typer.secho(f"violated: {line}", fg="red", err=True)
    if check and made.violations:
        violated = pluralize(len(made.violations), "invariant is", "invariants are")
        raise CheckFailedError(f"{violated} violated")


def _write(
    made: "Report",
    store: "Store",
    results: "Path",
    form: "Format | Literal['html']",
    *,
    figures: bool,
) -> None:
    """Write a report, with figures if requested or part of the page; print it if it is text."""
    folder = results / made.experiment.profile
    if form == "html":
        from orchestrator.reporting.html import write_page

        path, drawn = write_page(made, store, folder)
    else:
        from orchestrator.reporting.figures import draw_figures

        typer.echo(render(made, form))  # even if no file can be written
        with writing_to(folder / "figures"):
            drawn = draw_figures(made, store, folder / "figures") if figures else []
        path = write_report(made, results, form)
    if figures or form == "html":
        typer.echo(f"{pluralize(len(drawn), 'figure')} in {folder / 'figures'}", err=True)
    typer.echo(f"written to {path}", err=True)
