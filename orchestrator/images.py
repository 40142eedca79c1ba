"""The images that an experiment needs, fetched and checked once before any run starts."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from aol.data import DataError, default_root, prepare
from orchestrator.spec import Experiment


def data_root(experiment: Experiment) -> Path:
    """Where images are kept: `$AOL_DATA`, the file's `data_root`, or the platform's cache."""
    return (chosen_root(experiment) or default_root()).absolute()


def chosen_root(experiment: Experiment) -> Path | None:
    """The file's `data_root` unless `$AOL_DATA` overrules it; None leaves it to each machine."""
    if os.environ.get("AOL_DATA") or experiment.data_root is None:
        return None
    return (experiment.path.parent / experiment.data_root.expanduser()).absolute()


def prepare_all(experiment: Experiment, datasets: Iterable[str]) -> None:
    """Have these images checked and kept. Raises: DataError with every dataset that has none."""
    root = data_root(experiment)
    console = Console(file=sys.stderr)
    problems = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name in sorted(datasets):
            stages: dict[str, TaskID] = {}

            def show(stage: str, share: float, stages: dict[str, TaskID] = stages) -> None:
                if stage not in stages:
                    stages[stage] = progress.add_task(stage, total=1.0)
                progress.update(stages[stage], completed=share)

            try:
                prepare(name, root, show)
            except DataError as error:
                problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
