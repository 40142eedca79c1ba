"""`compare` and `cra`: compare two runs, print certified accuracy at any radius."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from aol.certification.certificate import parse_radius
from aol.errors import RadiusError
from orchestrator.analysis.compare import Comparison, compare_runs
from orchestrator.analysis.margins import certified_share, describe_missing_margins, load_margins
from orchestrator.analysis.tables import finished_runs
from orchestrator.cli.options import JsonOption, ProfileOptions, command
from orchestrator.formatting import format_percent, format_table, to_json, with_note
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store


@command
def compare(
    first: Annotated[int, typer.Argument(metavar="RUN", help="ID of the first run.")],
    second: Annotated[int, typer.Argument(metavar="RUN", help="ID of the second run.")],
    options: ProfileOptions,
    replicate: Annotated[int, typer.Option(min=0, help="Replicate of both runs.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs on the same test images.

    Prints McNemar's test and the 95% interval of the difference in every column.
    """
    store, experiment = options.open_profile()
    comparisons = compare_runs(experiment, store, (first, second), replicate)
    typer.echo(comparison_table(experiment, comparisons, (first, second), as_json=as_json))


@command
def cra(
    radius: Annotated[
        str, typer.Option(metavar="RADIUS", help="L2 radius, pixels in [0, 1]: 0.5 or 36/255.")
    ],
    options: ProfileOptions,
    as_json: JsonOption = False,
) -> None:
    """Print certified accuracy at any radius.

    Print one line per finished run.
    """
    try:
        value = parse_radius(radius)
    except RadiusError as error:
        raise RadiusError(f"--radius: {error}") from None
    store, experiment = options.open_profile()
    typer.echo(cra_table(experiment, store, value, as_json=as_json))
    for line in describe_missing_margins(experiment, store):
        typer.echo(line, err=True)


def comparison_table(
    experiment: Experiment,
    comparisons: Mapping[str, Comparison],
    pair: tuple[int, int],
    *,
    as_json: bool = False,
) -> str:
    """Return the comparisons by column as a table or as JSON."""
    if as_json:
        columns = {title: asdict(comparison) for title, comparison in comparisons.items()}
        profile = {"profile": experiment.profile, "note": experiment.note}
        return to_json({**profile, "runs": pair, "columns": columns})
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
        for title, one in comparisons.items()
    ]
    headers = ["", f"run {pair[0]}", f"run {pair[1]}", "difference", "95 % interval"]
    headers += [f"only {pair[0]}", f"only {pair[1]}", "McNemar's p"]
    return with_note(experiment.note, format_table(rows, headers, left={""}))


def cra_table(experiment: Experiment, store: Store, radius: float, *, as_json: bool = False) -> str:
    """Return the certified accuracy of every finished run that has margins, as a table or JSON.

    Raises: RecordError.
    """
    records: list[dict[str, Any]] = [
        {
            "profile": experiment.profile,
            "note": experiment.note,
            "run_id": run.run_id,
            "name": run.name,
            "dataset": run.dataset,
            "seed": run.seed,
            "radius": radius,
            "cra": certified_share(margins, radius),
        }
        for run in finished_runs(experiment, store)
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
