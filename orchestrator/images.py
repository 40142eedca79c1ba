"""The images that an experiment needs, fetched and checked once before any run starts."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from aol.data import default_root, prepare
from orchestrator.spec import Experiment, RunSpec


def data_root(experiment: Experiment) -> Path:
    """Where images are kept: `$AOL_DATA`, the file's `data_root`, or the platform's cache."""
    return (chosen_root(experiment) or default_root()).absolute()


def chosen_root(experiment: Experiment) -> Path | None:
    """The file's `data_root` unless `$AOL_DATA` overrules it; None leaves it to each machine."""
    if os.environ.get("AOL_DATA") or experiment.data_root is None:
        return None
    return (experiment.path.parent / experiment.data_root.expanduser()).absolute()


def prepare_all(experiment: Experiment, runs: Iterable[RunSpec]) -> None:
    """Have the images of these runs checked and kept. Raises: DataError."""
    root = data_root(experiment)
    console = Console(file=sys.stderr)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name in dict.fromkeys(run.train.data.name for run in runs):
            stages: dict[str, TaskID] = {}

            def show(stage: str, share: float, stages: dict[str, TaskID] = stages) -> None:
                if stage not in stages:
                    stages[stage] = progress.add_task(stage, total=1.0)
                progress.update(stages[stage], completed=share)

            prepare(name, root, show)
