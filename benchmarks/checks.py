"""Whether each way of taking the step takes the right one: `benchmarks.gpu` asks before it times.

What a way's first steps do to the weights, and their losses, are compared with float64 steps of the
plain port on the CPU; a recording with the same steps unrecorded.
"""

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from aol.config import ModelConfig, Precision
from aol.train import train_in
from benchmarks.reference import CHECKED_BATCH, Course, Reference, checked, course_of, make
from benchmarks.ways import Way

# Two steps here are at most 3e-3 off in float32, 4e-3 with TF32's rounding of every product's
# inputs imitated, 8e-3 in bf16, whatever the network; losses agree to 1e-6.
TOLERANCE: dict[Precision, float] = {"float32": 1e-2, "tf32": 2e-2, "bf16": 4e-2}
LOSS_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 1e-3, "bf16": 5e-3}
GRAPH_TOLERANCE = 1e-2  # after several steps, atomics and kernel choice included
GRAPH_STEPS = 6  # the first ones are not recorded yet

Found = TypeVar("Found")


@dataclass(frozen=True)
class Check:
    """How far a way is from what it should do, and whether that is near enough."""

    error: float
    right: bool

    def __str__(self) -> str:
        return f"{self.error:.1e}" + ("" if self.right else " (too large)")


def expected_of(
    name: str, config: ModelConfig, model: nn.Sequential, brought: dict[str, Reference]
) -> Course:
    """What a network's checks compare with: brought along if it fits, computed here otherwise."""
    settings = checked(config)
    if name in brought:
        misfit = brought[name].misfit(settings, model)
        if misfit is None:
            return brought[name].course
        print(f"{name}: the reference {misfit}; computed here", flush=True)
    return make(settings, model).course


def checks(
    config: ModelConfig,
    model: nn.Sequential,
    device: torch.device,
    exact: Course,
    ways: Iterable[Way],
) -> dict[Way, Check]:
    """Each way's check, but of those that fail."""
    return of_those_that_work(ways, lambda way: _check(way, config, model, device, exact))


def of_those_that_work(ways: Iterable[Way], find: Callable[[Way], Found]) -> dict[Way, Found]:
    """What is found of each way; one that raises is told on stderr and left out."""
    found = {}
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
    for way in ways:
        try:
            with torch.cuda.stream(stream):  # a recording that fails leaves its own as current
                found[way] = find(way)
        except Exception:  # the others are worth their time all the same
            print(f"{way}:", file=sys.stderr)
            traceback.print_exc()
    return found


def _check(
    way: Way, config: ModelConfig, model: nn.Sequential, device: torch.device, exact: Course
) -> Check:
    train_in(way.precision)
    make_on = way.training(model, config, CHECKED_BATCH)
    if way.recorded:
        unrecorded = Way(way.precision).training(model, config, CHECKED_BATCH)
        expected = course_of(unrecorded(device), model, GRAPH_STEPS)
        course, tolerance = course_of(make_on(device), model, GRAPH_STEPS), GRAPH_TOLERANCE
    else:
        expected = exact
        course, tolerance = course_of(make_on(device), model), TOLERANCE[way.precision]
    error = course.distance(expected)
    near = course.loss_distance(expected) <= LOSS_TOLERANCE[way.precision]
    return Check(error, near and error <= tolerance)
