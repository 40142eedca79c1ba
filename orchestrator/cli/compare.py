"""`compare` and `cra`: runs compared on the same test images."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.analysis.margins import Comparison, _finished, certified_share, load_margins
from orchestrator.cli.options import (
    SPEC,
    JsonOption,
    ResultsOption,
    SetOption,
    SpecArgument,
    SpecOption,
    StoreOption,
    TrainedProfileOption,
    app,
    opened_profile,
)
from orchestrator.formatting import format_percent, format_table, to_json, with_note
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store


def comparison_table(
    experiment: Experiment,
    found: Mapping[str, Comparison],
    pair: tuple[int, int],
    *,
    as_json: bool = False,
) -> str:
    """The comparison for people, or as JSON."""
    if as_json:
        return to_json(
            {
                "profile": experiment.profile,
                "note": experiment.note,
                "runs": pair,
                "columns": {title: asdict(one) for title, one in found.items()},
            }
        )
    rows = [
        [
            title,
            format_percent(100 * one.first),
            format_percent(100 * one.second),
            format_percent(100 * (one.second - one.first), signed=True),
            "[{}, {}]".format(*(format_percent(100 * end, signed=True) for end in one.interval)),
            one.only_first,
            one.only_second,
            f"{one.p:.2g}",
        ]
        for title, one in found.items()
    ]
    headers = ["", f"run {pair[0]}", f"run {pair[1]}", "difference", "95 % interval"]
    headers += [f"only {pair[0]}", f"only {pair[1]}", "McNemar's p"]
    return with_note(experiment.note, format_table(rows, headers, left={""}))


def cra_table(experiment: Experiment, store: Store, radius: float, *, as_json: bool = False) -> str:
    """The certified robust accuracy at a radius of every finished run that has margins.

    Raises: RecordError.
    """
    records = [
        {
            "profile": experiment.profile,
            "note": experiment.note,
            "run_id": run.run_id,
            "name": run.name,
            "dataset": run.config["data"]["name"],
            "seed": run.seed,
            "radius": radius,
            "cra": certified_share(margins, radius),
        }
        for run in _finished(experiment, store)
        if (margins := load_margins(store, run)) is not None
    ]
    if as_json:
        return to_json(records)
    rows = [
        [
            one["run_id"],
            one["name"],
            one["dataset"],
            one["seed"],
            format_percent(100 * float(one["cra"])),
        ]
        for one in records
    ]
    headers = ["run", "name", "dataset", "seed", f"CRA {radius:g}"]
    return with_note(experiment.note, format_table(rows, headers, left={"name", "dataset"}))


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
    from orchestrator.analysis.margins import compare_runs
    from orchestrator.cli.compare import comparison_table

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    found = compare_runs(experiment, opened, (first, second), replicate)
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
    from aol.certification.certificate import parse_radius
    from aol.errors import RadiusError
    from orchestrator.analysis.margins import without_margins
    from orchestrator.cli.compare import cra_table

    try:
        asked = parse_radius(radius)
    except RadiusError as error:
        raise RadiusError(f"--radius: {error}") from None
    opened, experiment = opened_profile(spec, profile, settings, results, store)
    typer.echo(cra_table(experiment, opened, asked, as_json=as_json))
    for line in without_margins(experiment, opened):
        typer.echo(line, err=True)
