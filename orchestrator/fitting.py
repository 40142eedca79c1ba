"""Sizes and widths of which no network can be made, in words a person can act on."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from fractions import Fraction

from aol.config import TrainConfig
from aol.widths import Field, Model, misfit, neighbours
from orchestrator.document import Mistake, Place
from orchestrator.settings import Layers, option

DECIDING = ("model.width", "model.size", "model.kind", "data.name")  # whether a network fits

RunMistake = tuple[str, Mistake]  # what to call the run, and what is wrong with it


@dataclass(frozen=True)
class Fitted:
    """A run whose model and data are right, each by itself."""

    name: str
    train: TrainConfig
    layers: Layers

    @property
    def model(self) -> Model:
        """The network's settings and its classes."""
        return self.train.model, self.train.data.classes


def misfits(runs: Sequence[Fitted], overrides: Container[str]) -> list[RunMistake]:
    """What is wrong with the networks of a profile's runs.

    Names the nearest values that fit, for all runs that take the value from the same place.
    """
    mistakes = []
    near: dict[tuple[Place, float, Field], list[Fraction]] = {}
    for run in runs:
        reason = misfit(*run.model)
        if reason is None:
            continue
        for field in _suspects(run):
            shared = _shared(run, field)
            if shared not in near:
                sharing = dict.fromkeys(one.model for one in runs if _shared(one, field) == shared)
                near[shared] = neighbours(sharing, field)
            if near[shared]:
                break
        place, value, _ = shared
        advice = " and ".join(map(written, near[shared]))
        text = f"model.{field}: got {value}: {reason}"
        text += f"; nearest that fit: {advice}" if advice else ""
        mistakes.append((run.name, Mistake(_blamed(field, overrides) or place, text)))
    return mistakes


def written(value: Fraction) -> str:
    """The number as one would write it in the file: `0.125`, `13/96`."""
    decimal = f"{float(value):.6g}"
    return decimal if Fraction(decimal) == value else str(value)


def _suspects(run: Fitted) -> list[Field]:
    """The two fields that can be changed, the one that was set last first."""
    latest = run.layers.latest(("model", "width"), ("model", "size"))
    return ["width", "size"] if latest == ("model", "width") else ["size", "width"]


def _shared(run: Fitted, field: Field) -> tuple[Place, float, Field]:
    """Where a run has its value from: runs with the same answer change together."""
    return run.layers.origin(("model", field)), getattr(run.train.model, field), field


def _blamed(field: Field, overrides: Container[str]) -> Place | None:
    """The override that made the widths wrong, if there is one: the file alone is right."""
    names = (f"model.{field}", *DECIDING)
    return next((option(name) for name in names if name in overrides), None)
