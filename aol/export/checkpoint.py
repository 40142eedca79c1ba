"""The network of a saved state, without its images or its optimiser."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aol.config import TrainConfig
from aol.errors import CheckpointError, first_line
from aol.models.architectures import architecture
from aol.training.run_folder import Run, RunFolder


@dataclass(frozen=True)
class TrainedNetwork:
    """A run's network with its raw weights, after so many epochs."""

    model: nn.Sequential
    epoch: int


def load_network(config: TrainConfig, state: bytes, where: str) -> TrainedNetwork:
    """The network of a state that `aol.training.trainer.Trainer` saved. Raises: CheckpointError."""
    try:
        found = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
        is_of = found["digest"], found["seed"]
        if is_of != (config.digest(), config.seed):
            raise CheckpointError(
                f"{where}: is of settings {is_of[0]} with seed {is_of[1]}, the run has "
                f"{config.digest()} with seed {config.seed}"
            )
        model = architecture(config.model, config.data.classes).to_empty(device="cpu")
        model.load_state_dict(found["model"])
        return TrainedNetwork(model.eval().requires_grad_(False), int(found["epoch"]))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file raises anything
        first = first_line(error)
        raise CheckpointError(f"{where}: is damaged or no saved state: {first}") from error


def load_network_from_folder(folder: Path) -> tuple[Run, TrainedNetwork]:
    """The run that `python -m aol` trains in a folder, and its network's newest state.

    Raises: CheckpointError.
    """
    file = folder / "run.json"
    try:
        run = Run.from_plan(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: does not describe a run: {error}") from error
    states = RunFolder(folder).states()
    if not states:
        raise CheckpointError(
            f"{folder}: no state-<n>.pt there; the run has not saved anything yet"
        )
    return run, load_network(run.config, read_state(states[0]), str(states[0]))


def read_state(file: Path) -> bytes:
    """A state's file. Raises: CheckpointError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error


def describe_run(run: Run, epoch: int) -> dict[str, Any]:
    """Which run a network is of, as plain values."""
    return {"key": run.key, "id": run.id, "name": run.name, "profile": run.profile, "epoch": epoch}
