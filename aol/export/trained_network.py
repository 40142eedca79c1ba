"""The network of a saved state, without its images or its optimiser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from aol.config import TrainConfig
from aol.errors import CheckpointError, first_line
from aol.models.architectures import architecture
from aol.training.checkpoints import load_checkpoint
from aol.training.records import Run
from aol.training.run_folder import RunFolder
from aol.training.trainer import check_settings


@dataclass(frozen=True)
class TrainedNetwork:
    """A run's network with its raw weights, and the number of epochs it was trained."""

    model: nn.Sequential
    epoch: int


def load_network(config: TrainConfig, file: Path) -> TrainedNetwork:
    """Return the network of a checkpoint. Raises: CheckpointError."""
    found = load_checkpoint(file)
    try:
        check_settings(found, config)
        model = architecture(config.model, config.data.classes).to_empty(device="cpu")
        model.load_state_dict(found["model"])
        return TrainedNetwork(model.eval().requires_grad_(False), int(found["epoch"]))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    except Exception as error:  # the state of another program raises anything
        first = first_line(error)
        raise CheckpointError(f"{file}: is not a checkpoint of this network: {first}") from error


def load_network_from_folder(path: Path) -> tuple[Run, TrainedNetwork]:
    """Return the run that `python -m aol` trains in a folder, and the network of its newest state.

    Raises: CheckpointError.
    """
    folder = RunFolder(path)
    try:
        run = folder.run()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    states = folder.states()
    if not states:
        raise CheckpointError(f"{path}: no state-<n>.pt there; the run has not saved a state yet")
    return run, load_network(run.config, states[0])


def describe_run(run: Run, epoch: int) -> dict[str, Any]:
    """Return which run a network is from, as plain values."""
    return {"key": run.key, "id": run.id, "name": run.name, "profile": run.profile, "epoch": epoch}
