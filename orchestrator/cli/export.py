"""The command `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aol.cli.paths import parse_path
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
        Literal["safetensors", "onnx", "all"],
        typer.Option("--format", help="Format of the network."),
    ] = "safetensors",
    replicate: Annotated[int, typer.Option(min=0, help="Replicate of the run.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=parse_path,
            metavar="PATH",
            help="Folder to write.  [default: PROFILE/models/KEY in the results]",
        ),
    ] = None,
) -> None:
    """Export a finished run's network, rescaled weights folded in, with a model card."""
    from orchestrator.analysis.report import make_report
    from orchestrator.scheduling.storage import CHECKPOINTS
    from orchestrator.sharing.export import from_folder, from_store

    report = None
    if run.isdecimal():
        store, experiment = options.open_profile()
        storage = str(options.results_folder / CHECKPOINTS)
        finished = from_store(experiment, store, int(run), replicate, storage=storage)
        report = make_report(experiment, store)
    else:
        finished = from_folder(parse_path(run))
    place = options.results_folder / finished.run.profile / "models"
    for file in _write(finished, report, form, out or place / finished.run.key):
        typer.echo(file)


def _write(
    finished: "FinishedRun", report: "Report | None", form: "Format | Literal['all']", folder: Path
) -> list[Path]:
    """Write the network in one format or all, and its card; return the files."""
    from aol.export.formats import FILES
    from aol.provenance import file_sha256
    from orchestrator.sharing.export import fold_run, write_card, write_model
    from orchestrator.sharing.model_card import render_card

    chosen = list(FILES) if form == "all" else [form]
    model = fold_run(finished, chosen)
    files = write_model(model, chosen, folder)
    digests = {file.name: file_sha256(file) for file in files}
    return [*files, write_card(render_card(finished, model, chosen, digests, report), folder)]
