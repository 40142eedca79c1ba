"""The datasets of an experiment, fetched and checked before any run starts."""

import os
from collections.abc import Iterable
from pathlib import Path

from aol.data.datasets import default_root, describe_fallback, prepare
from aol.errors import DataError
from orchestrator.driver.observer import Observer
from orchestrator.spec.experiment import Experiment


def data_root(experiment: Experiment) -> Path:
    """Return the folder of the images: `$AOL_DATA`, the file's `data_root`, or the cache."""
    return (chosen_root(experiment) or default_root()).absolute()


def chosen_root(experiment: Experiment) -> Path | None:
    """Return the file's `data_root`; None if `$AOL_DATA` overrides it or it is not set."""
    if os.environ.get("AOL_DATA") or experiment.data_root is None:
        return None
    return (experiment.path.parent / experiment.data_root.expanduser()).absolute()


def prepare_all(experiment: Experiment, datasets: Iterable[str], observer: Observer) -> None:
    """Fetch, check and store these datasets; send a message if they are not in the data root.

    Raises: DataError with every dataset that no source provides.
    """
    root = data_root(experiment)
    problems = []
    for name in sorted(datasets):
        try:
            prepare(name, root, observer.progress)
            if note := describe_fallback(name, root):
                observer.message(note)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
