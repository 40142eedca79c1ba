"""Whether each way of taking the step takes the right one: `benchmarks.gpu` asks before it times.

What a way's first steps do to the weights, and their losses, are compared with float64 steps of the
plain port on the CPU; a recording with the same steps unrecorded.
"""

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from aol.config import Precision
from benchmarks.device import own_stream
from benchmarks.reference import CHECKED_BATCH, Course, Reference, checked, course_of, make
from benchmarks.ways import Subject, Way

# Two steps on a CPU are at most 3e-3 off in float32, 4e-3 with TF32's rounding of every product's
# inputs imitated and 1e-2 in bf16, whatever the network; losses agree to 1e-6.
TOLERANCE: dict[Precision, float] = {"float32": 1e-2, "tf32": 2e-2, "bf16": 4e-2}
LOSS_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 1e-3, "bf16": 5e-3}
GRAPH_TOLERANCE = 1e-2  # after several steps, atomics and kernel choice included
GRAPH_STEPS = 6  # the first ones are not recorded yet

Found = TypeVar("Found")


@dataclass(frozen=True)
class Check:
    """How far a way is from what it should do, relative to it, and what is wrong with that."""

    error: float
    wrong: str | None

    def __str__(self) -> str:
        return f"{self.error:.1e}" + (f" ({self.wrong})" if self.wrong else "")


def expected_of(subject: Subject, brought: dict[str, Reference]) -> Course:
    """What a network's checks compare with: brought along if it fits, computed here otherwise."""
    settings = checked(subject.config)
    if subject.name in brought:
        misfit = brought[subject.name].misfit(settings, subject.model)
        if misfit is None:
            return brought[subject.name].course
        print(f"{subject.name}: the reference {misfit}; computed here", flush=True)
    return make(settings, subject.model).course


def check(subject: Subject, way: Way, exact: Course) -> Check:
    """A way's first steps beside `exact`, a recording's beside the same steps unrecorded."""
    if way.recorded:
        unrecorded = subject.training(Way(way.precision), CHECKED_BATCH)
        expected = course_of(unrecorded, subject.model, GRAPH_STEPS)
        course = course_of(subject.training(way, CHECKED_BATCH), subject.model, GRAPH_STEPS)
        tolerance = GRAPH_TOLERANCE
    else:
        expected, tolerance = exact, TOLERANCE[way.precision]
        course = course_of(subject.training(way, CHECKED_BATCH), subject.model)
    error = course.distance(expected)
    if not error <= tolerance:
        return Check(error, "too large")
    near = course.loss_distance(expected) <= LOSS_TOLERANCE[way.precision]
    return Check(error, None if near else "losses differ")


def of_those_that_work(
    ways: Iterable[Way], find: Callable[[Way], Found], doing: str
) -> dict[Way, Found]:
    """What is found of each way; one that raises is told on stderr and left out."""
    found = {}
    for way in ways:
        try:
            with own_stream():
                found[way] = find(way)
        except Exception:  # the others are worth their time all the same
            print(f"{doing}, {way}:", file=sys.stderr)
            traceback.print_exc()
    return found
