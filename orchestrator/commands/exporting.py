"""The command that gives a trained network away."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.commands.options import (
    ResultsOption,
    SetOption,
    SpecOption,
    StoreOption,
    TrainedProfileOption,
    app,
    opened_profile,
)


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run ID, or a folder of `python -m aol`.")
    ],
    form: Annotated[
        Literal["safetensors", "torchscript", "onnx", "all"],
        typer.Option("--format", help="What to write."),
    ] = "safetensors",
    spec: SpecOption = Path("experiments.yaml"),
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    replicate: Annotated[int, typer.Option(min=0, help="Number of the replicate.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Where it goes.  [default: PROFILE/models/KEY in the results]"),
    ] = None,
    results: ResultsOption = None,
    store: StoreOption = None,
) -> None:
    """Write a finished run's network, rescaled weights folded in, with a model card."""
    from aol.export import FILES, Format
    from orchestrator.card import card
    from orchestrator.exporting import (
        digests,
        from_folder,
        from_store,
        plain_model,
        write_card,
        write_model,
    )
    from orchestrator.report import make_report

    report = None
    if run.isdecimal():
        opened, experiment = opened_profile(spec, profile, settings, results, store)
        finished = from_store(experiment, opened, int(run), replicate)
        report = make_report(experiment, opened)
    else:
        finished = from_folder(Path(run))
    place = (results or spec.parent / "results") / finished.run.profile / "models"
    folder = out or place / finished.run.key
    chosen: list[Format] = list(FILES) if form == "all" else [form]
    model = plain_model(finished, chosen)
    files = write_model(model, chosen, folder)
    written = write_card(card(finished, model, chosen, digests(files), report), folder)
    for file in [*files, written]:
        typer.echo(file)
