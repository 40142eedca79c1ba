"""What the first steps of training should come to, in float64: computed here or brought along.

A float64 step on a CPU takes minutes that a lent GPU should not wait for, and the weights that it
changes are hundreds of megabytes. So a reference is made elsewhere and keeps sketches: a tensor's
entries with fixed random signs, folded into `FOLDED` sums. Sketches are linear, and whatever the
tensor, the square of its sketch's norm is its own on average, with a deviation of about 6 % where
its entries are of one size and of none where one stands out. So the distance of two sketches is
that of their tensors, wherever they differ.
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
from benchmarks.contestants import Training, config_of, images_of, plain_training

FOLDED = 509  # a prime number: rows and columns do not fold onto one another
CHECKED_STEPS = 2  # the second has momentum
CHECKED_BATCH = 8  # float64 on the CPU is slow
SAME_START = 1e-5  # an orthogonal start differs in the last digits from processor to processor
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of SplitMix64


class ReferenceFileError(Exception):
    """A file that is no reference: where, and what to do."""

    exit_code = 2


@dataclass(frozen=True)
class Course:
    """What some steps came to: how the weights changed, in sketches, and each step's losses.

    Shapes: (tensors, FOLDED) float64, (steps,) float64, both on the CPU.
    """

    change: Tensor
    losses: Tensor

    def distance(self, expected: "Course") -> float:
        """How far the change is from the expected one, relative to it, in L2."""
        return _distance(self.change, expected.change)

    def loss_distance(self, expected: "Course") -> float:
        """The same for the losses, the worst step's."""
        return float(((self.losses - expected.losses).abs() / expected.losses).max())


@dataclass(frozen=True)
class Reference:
    """The course that a network should take, and from where: settings, images, weights."""

    settings: str
    images: str
    start: Tensor
    torch: str
    course: Course

    def misfit(self, config: TrainConfig, model: nn.Module) -> str | None:
        """Why it says nothing of this training, None if it does."""
        if self.settings != _settings(config):
            return f"is of other settings ({self.settings}, not {_settings(config)})"
        if self.images != _images(config):
            return f"is of other images: torch {self.torch} drew other random numbers"
        far = _distance(_sketches(model.parameters()), self.start)
        if not far <= SAME_START:
            return f"starts from other weights ({far:.0e} away): it is of torch {self.torch}"
        return None


def course_of(training: Training, model: nn.Module, steps: int = CHECKED_STEPS) -> Course:
    """Take some steps from `model`'s weights, and note where they led."""
    losses = torch.stack([training().clone() for _ in range(steps)])
    pairs = zip(training.model.parameters(), model.parameters(), strict=True)
    changes = (after.detach().double() - before.detach().to(after) for after, before in pairs)
    return Course(_sketches(changes), losses.double().cpu())


def checked(model: ModelConfig) -> TrainConfig:
    """The settings of the checks."""
    return config_of(model, CHECKED_BATCH)


def make(config: TrainConfig, model: nn.Sequential) -> Reference:
    """The reference of a network, by the plain port in float64 on this machine's CPU."""
    course = course_of(plain_training(config, model, dtype=torch.float64), model)
    start = _sketches(model.parameters())
    return Reference(_settings(config), _images(config), start, str(torch.__version__), course)


def keep(file: Path, references: dict[str, Reference]) -> None:
    """Write references by network, aside and then renamed; sketches in float32."""
    with atomic_path(file) as part:
        torch.save({name: _plain(reference) for name, reference in references.items()}, part)


def read(file: Path) -> dict[str, Reference]:
    """The references in a file, by network. Raises: ReferenceFileError."""
    try:
        found = torch.load(file, weights_only=True)
        return {name: _reference(plain) for name, plain in found.items()}
    except OSError as error:
        raise ReferenceFileError(f"{file}: cannot be read: {error.strerror}") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, *_WRONG) as error:
        raise ReferenceFileError(
            f"{file}: is damaged or no reference: make it with --make-reference"
        ) from error


_WRONG = (AttributeError, KeyError, TypeError, ValueError)  # readable, and something else


def _plain(reference: Reference) -> dict[str, Any]:
    course = reference.course
    return {
        "settings": reference.settings,
        "images": reference.images,
        "torch": reference.torch,
        "start": reference.start.float(),
        "change": course.change.float(),
        "losses": course.losses,
    }


def _reference(plain: dict[str, Any]) -> Reference:
    course = Course(plain["change"].double(), plain["losses"])
    kept = {name: plain[name] for name in ("settings", "images", "torch")}
    return Reference(**kept, start=plain["start"].double(), course=course)


def _settings(config: TrainConfig) -> str:
    """Precision is none of them: every way is compared with float64."""
    return f"{replace(config, precision='float32').digest()} for {CHECKED_STEPS} steps"


def _images(config: TrainConfig) -> str:
    images = images_of(config.batch_size)
    digest = hashlib.sha256(images.pixels.numpy().tobytes() + images.labels.numpy().tobytes())
    return digest.hexdigest()


def _sketches(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([sketch(tensor).cpu() for tensor in tensors])


def sketch(tensor: Tensor) -> Tensor:
    """A tensor's sketch, on its device. Shapes: (...) -> (FOLDED,) float64."""
    entries = tensor.detach().double().flatten()
    signed = entries * _signs(len(entries), entries.device)
    padded = nn.functional.pad(signed, (0, -len(signed) % FOLDED))
    return padded.view(-1, FOLDED).sum(0)


@cache
def _signs(count: int, device: torch.device) -> Tensor:
    """Random signs, the same on every device and with every version of torch: hashed positions."""
    first, second, third = (number - 2**64 * (number >> 63) for number in MULTIPLIERS)
    mixed = torch.arange(1, count + 1, device=device) * first
    mixed = (mixed ^ (mixed >> 30)) * second
    mixed = (mixed ^ (mixed >> 27)) * third
    return (mixed >> 63).to(torch.int8).mul_(2).add_(1)


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
