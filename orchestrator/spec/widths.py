"""Checking that the networks of merged runs have possible widths."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from aol.config import TrainConfig
from aol.models.widths import Field, Model, misfit, neighbours
from orchestrator.spec.overrides import MergedSettings, set_option
from orchestrator.spec.source import Mistake, Place

DECIDING = ("model.width", "model.size", "model.kind", "data.name")  # whether a network fits


@dataclass(frozen=True)
class MergedRun:
    """A run with a valid model and dataset, and the settings it was merged from."""

    name: str
    train: TrainConfig
    settings: MergedSettings

    @property
    def model(self) -> Model:
        """The network's settings and its number of classes."""
        return self.train.model, self.train.data.classes

    def source(self, field: Field) -> tuple[Place, float]:
        """Return place and value of a field; it has to change for all runs that share them."""
        return self.settings.place(("model", field)), getattr(self.train.model, field)


def check_widths(
    runs: Sequence[MergedRun], overrides: Container[str]
) -> Iterator[tuple[str, Mistake]]:
    """Yield the runs whose network is impossible, and the nearest values that are possible.

    An override among the deciding settings is at fault: without it the file is valid.
    """
    for run in runs:
        if reason := misfit(*run.model):
            field, nearest = _nearest(run, runs)
            place, value = run.source(field)
            at_fault = [name for name in (f"model.{field}", *DECIDING) if name in overrides]
            if at_fault:
                place = set_option(at_fault[0])
            advice = " and ".join(map(format_fraction, nearest))
            advice = f"; nearest that fit: {advice}" if advice else ""
            yield run.name, Mistake(place, f"model.{field}: got {value}: {reason}{advice}")


def format_fraction(value: Fraction) -> str:
    """Return the shortest exact form that the file accepts: `0.125`, `13/96`."""
    decimal = f"{float(value):.6g}"
    return decimal if Fraction(decimal) == value else str(value)


def _nearest(run: MergedRun, runs: Sequence[MergedRun]) -> tuple[Field, list[Fraction]]:
    """Return the field to change, that set last if it can help, and its nearest values that fit."""
    fields: list[Field] = ["size", "width"]
    if run.settings.last_set(("model", "width"), ("model", "size")) == ("model", "width"):
        fields.reverse()
    for field in fields:
        source = run.source(field)
        sharing = dict.fromkeys(one.model for one in runs if one.source(field) == source)
        if nearest := neighbours(sharing, field):
            break
    return field, nearest
