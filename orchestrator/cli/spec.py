"""`validate` and `data`: check the YAML file, prepare the images."""

from contextlib import closing
from typing import Annotated

import typer

from orchestrator.cli.options import SPEC, OnlyOption, SetOption, SpecArgument, app
from orchestrator.formatting import pluralize
from orchestrator.spec.loader import SpecFile


@app.command()
def validate(spec: SpecArgument = SPEC) -> None:
    """Print every mistake in SPEC, with its line."""
    loaded = SpecFile(spec)
    file = loaded.file
    cells = sum(len(row.published) for table in file.tables for row in table.rows)
    typer.echo(
        f"{spec}: valid: {pluralize(len(file.runs), 'run')}, profiles "
        f"{', '.join(loaded.profiles)}, {pluralize(len(file.tables), 'table')} with "
        f"{pluralize(cells, 'published cell')}"
    )


@app.command()
def data(
    spec: SpecArgument = SPEC,
    profile: Annotated[str | None, typer.Option(help="Only this profile.")] = None,
    only: OnlyOption = None,
    settings: SetOption = None,
) -> None:
    """Download and check the images of SPEC.

    Images that are already on this machine are not downloaded again.
    """
    from aol.data.datasets import verified_file
    from orchestrator.cli.console import ConsoleObserver
    from orchestrator.driver.datasets import data_root, prepare_all

    file = SpecFile(spec)
    profiles = [profile] if profile else file.profiles
    experiments = [file.experiment(name, settings or ()).subset(only, None) for name in profiles]
    datasets = {run.train.data.name for experiment in experiments for run in experiment.runs}
    with closing(ConsoleObserver()) as observer:
        prepare_all(experiments[0], datasets, observer)
    places = {verified_file(name, data_root(experiments[0])).parents[1] for name in datasets}
    where = " and ".join(sorted(map(str, places)))
    typer.echo(f"{', '.join(sorted(datasets))}: checked, in {where}")
