"""The command that gives a trained network away."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from orchestrator.cli.options import ProfileOptions, command

if TYPE_CHECKING:
    from aol.export.formats import Format
    from orchestrator.analysis.report import Report
    from orchestrator.sharing.export import FinishedRun


@command
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run ID, or a folder of `python -m aol`.")
    ],
    options: ProfileOptions,
    form: Annotated[
        Literal["safetensors", "torchscript", "onnx", "all"],
        typer.Option("--format", help="What to write."),
    ] = "safetensors",
    replicate: Annotated[int, typer.Option(min=0, help="Number of the replicate.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Where it goes.  [default: PROFILE/models/KEY in the results]"),
    ] = None,
) -> None:
    """Write a finished run's network, rescaled weights folded in, with a model card."""
    from orchestrator.analysis.report import make_report
    from orchestrator.sharing.export import from_folder, from_store

    report = None
    if run.isdecimal():
        store, experiment = options.open_profile()
        finished = from_store(experiment, store, int(run), replicate)
        report = make_report(experiment, store)
    else:
        finished = from_folder(Path(run))
    place = options.results_folder / finished.run.profile / "models"
    for file in _written(finished, report, form, out or place / finished.run.key):
        typer.echo(file)


def _written(
    finished: "FinishedRun", report: "Report | None", form: "Format | Literal['all']", folder: Path
) -> list[Path]:
    """Write the network in a format or in all, and its card; return the files."""
    from aol.export.formats import FILES
    from orchestrator.sharing.export import digests, plain_model, write_card, write_model
    from orchestrator.sharing.model_card import render_card

    chosen = list(FILES) if form == "all" else [form]
    model = plain_model(finished, chosen)
    files = write_model(model, chosen, folder)
    return [
        *files,
        write_card(render_card(finished, model, chosen, digests(files), report), folder),
    ]
