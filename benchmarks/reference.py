"""The expected first training steps in float64: computed here, or read from a file.

A float64 step on a CPU takes minutes, and the weights that it changes are hundreds of megabytes. A
reference is therefore computed in advance and stored as sketches. A sketch multiplies the entries
of a tensor by fixed random signs and sums them into `SKETCH_SIZE` numbers. It is linear, and the
square of its norm is on average that of the tensor, with a deviation of about 6 % for entries of
similar size. The distance of two sketches is therefore that of their tensors.
"""

import hashlib
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aol.atomic import atomic_path
from aol.config import ModelConfig, TrainConfig
from benchmarks.implementations import Training, plain_training, random_batch, train_config

SKETCH_SIZE = 509  # prime, so that no row or column is summed into a single number
CHECK_STEPS = 2  # the second one uses momentum
CHECK_BATCH = 8  # float64 on the CPU is slow
SAME_WEIGHTS = 1e-5  # orthogonal initial weights differ by rounding between processors
INVALID_CONTENT = (AttributeError, KeyError, TypeError, ValueError)  # of a file with other data
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64


class ReferenceFileError(Exception):
    """Raised when a file of references cannot be read."""

    exit_code = 2


@dataclass(frozen=True)
class Trajectory:
    """The result of some steps: sketches of the changes of the weights, and each step's loss.

    Shapes: (tensors, SKETCH_SIZE) float64, (steps,) float64, both on the CPU.
    """

    change: Tensor
    losses: Tensor

    def distance(self, expected: "Trajectory") -> float:
        """Return the relative L2 distance to the expected changes."""
        return _distance(self.change, expected.change)

    def loss_distance(self, expected: "Trajectory") -> float:
        """Return the largest relative difference of a loss."""
        return float(((self.losses - expected.losses).abs() / expected.losses).max())


@dataclass(frozen=True)
class Reference:
    """The expected trajectory of a network, with its settings, images and first weights."""

    settings: str
    images: str
    start: Tensor
    torch: str
    trajectory: Trajectory

    def mismatch(self, config: TrainConfig, model: nn.Module) -> str | None:
        """Return why this is not the reference of a training, or None if it is."""
        if self.settings != _settings(config):
            return f"has other settings ({self.settings}, not {_settings(config)})"
        if self.images != _images(config):
            return f"has other images: torch {self.torch} drew other random numbers"
        distance = _distance(_sketches(model.parameters()), self.start)
        if not distance <= SAME_WEIGHTS:
            return (
                f"has other first weights (distance {distance:.0e}): it is from torch {self.torch}"
            )
        return None


def run_steps(training: Training, model: nn.Module, steps: int = CHECK_STEPS) -> Trajectory:
    """Take some steps from the weights of `model`; return their trajectory."""
    losses = torch.stack([training().clone() for _ in range(steps)])
    pairs = zip(training.model.parameters(), model.parameters(), strict=True)
    changes = (after.detach().double() - before.detach().to(after) for after, before in pairs)
    return Trajectory(_sketches(changes), losses.double().cpu())


def check_config(model: ModelConfig) -> TrainConfig:
    """Return the settings of the checks."""
    return train_config(model, CHECK_BATCH)


def make_reference(config: TrainConfig, model: nn.Sequential) -> Reference:
    """Compute the reference of a network with the plain port in float64 on the CPU."""
    trajectory = run_steps(plain_training(config, model, dtype=torch.float64), model)
    start = _sketches(model.parameters())
    return Reference(_settings(config), _images(config), start, str(torch.__version__), trajectory)


def save_references(file: Path, references: dict[str, Reference]) -> None:
    """Write references by network to a file atomically, with sketches in float32."""
    with atomic_path(file) as part:
        torch.save({name: _to_plain(reference) for name, reference in references.items()}, part)


def load_references(file: Path) -> dict[str, Reference]:
    """Return the references in a file by network. Raises: ReferenceFileError."""
    try:
        found = torch.load(file, weights_only=True)
        return {name: _from_plain(plain) for name, plain in found.items()}
    except OSError as error:
        raise ReferenceFileError(f"{file}: cannot be read: {error.strerror}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, *INVALID_CONTENT) as error:
        raise ReferenceFileError(
            f"{file}: is damaged or has no references; create it with --make-reference"
        ) from error


def sketch(tensor: Tensor) -> Tensor:
    """Return a tensor's sketch, on its device. Shapes: (...) -> (SKETCH_SIZE,) float64."""
    entries = tensor.detach().double().flatten()
    signed = entries * _signs(len(entries), entries.device)
    padded = nn.functional.pad(signed, (0, -len(signed) % SKETCH_SIZE))
    return padded.view(-1, SKETCH_SIZE).sum(0)


def _to_plain(reference: Reference) -> dict[str, Any]:
    trajectory = reference.trajectory
    return {
        "settings": reference.settings,
        "images": reference.images,
        "torch": reference.torch,
        "start": reference.start.float(),
        "change": trajectory.change.float(),
        "losses": trajectory.losses,
    }


def _from_plain(plain: dict[str, Any]) -> Reference:
    trajectory = Trajectory(plain["change"].double(), plain["losses"])
    kept = {name: plain[name] for name in ("settings", "images", "torch")}
    return Reference(**kept, start=plain["start"].double(), trajectory=trajectory)


def _settings(config: TrainConfig) -> str:
    """Return the settings without the precision: every variant is compared with float64."""
    return f"{replace(config, precision='float32').digest()} for {CHECK_STEPS} steps"


def _images(config: TrainConfig) -> str:
    images = random_batch(config.batch_size)
    digest = hashlib.sha256(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes())
    return digest.hexdigest()


def _sketches(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([sketch(tensor).cpu() for tensor in tensors])


@cache
def _signs(count: int, device: torch.device) -> Tensor:
    """Return random signs, hashed from positions to be equal on every device and torch version."""
    first, second, third = (number - 2**64 * (number >> 63) for number in MULTIPLIERS)
    mixed = torch.arange(1, count + 1, device=device) * first
    mixed = (mixed ^ (mixed >> 30)) * second
    mixed = (mixed ^ (mixed >> 27)) * third
    return (mixed >> 63).to(torch.int8).mul_(2).add_(1)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
