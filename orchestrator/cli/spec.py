"""`validate` and `data`: check the YAML file, fetch the images."""

from contextlib import closing
from typing import Annotated

import typer

from orchestrator.cli.options import SPEC, OnlyOption, SetOption, SpecArgument, app
from orchestrator.formatting import pluralize


@app.command()
def validate(spec: SpecArgument = SPEC) -> None:
    """Check SPEC and print every mistake in it, with its line."""
    from orchestrator.spec.loader import SpecFile

    file = SpecFile(spec)
    cells = sum(len(row.published) for table in file.file.tables for row in table.rows)
    typer.echo(
        f"{spec}: valid: {pluralize(len(file.file.runs), 'run')}, profiles "
        f"{', '.join(file.profiles)}, {pluralize(len(file.file.tables), 'table')} with "
        f"{pluralize(cells, 'published cell')}"
    )


@app.command()
def data(
    spec: SpecArgument = SPEC,
    profile: Annotated[str | None, typer.Option(help="Just this profile.")] = None,
    only: OnlyOption = None,
    settings: SetOption = None,
) -> None:
    """Find, check and keep the images that SPEC needs, in all profiles or in one."""
    from orchestrator.cli.console import ConsoleObserver
    from orchestrator.driver.datasets import data_root, prepare_all
    from orchestrator.spec.loader import SpecFile

    file = SpecFile(spec)
    chosen = [profile] if profile else file.profiles
    experiments = [file.experiment(name, settings or ()).subset(only, None) for name in chosen]
    datasets = {run.train.data.name for experiment in experiments for run in experiment.runs}
    with closing(ConsoleObserver()) as observer:
        prepare_all(experiments[0], datasets, observer.progress)
    typer.echo(f"{', '.join(sorted(datasets))}: checked, in {data_root(experiments[0])}")
