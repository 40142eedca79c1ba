"""Checking the training step of every variant before it is timed.

The first steps of a variant are compared with float64 steps of the plain port on the CPU, in their
losses and changes of the weights; those of a recorded graph with the same steps unrecorded.
"""

import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from aol.config import Precision
from benchmarks.device import own_stream
from benchmarks.reference import (
    CHECK_BATCH,
    CHECK_STEPS,
    Reference,
    Trajectory,
    check_config,
    make_reference,
    run_steps,
)
from benchmarks.variants import Network, Variant

# On a CPU two steps differ by at most 3e-3 in float32, 4e-3 with the rounding of TF32 emulated and
# 1e-2 in bf16, for every network; losses agree to 1e-6.
TOLERANCE: dict[Precision, float] = {"float32": 1e-2, "tf32": 2e-2, "bf16": 4e-2}
LOSS_TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "tf32": 1e-3, "bf16": 5e-3}
GRAPH_TOLERANCE = 1e-2  # after several steps, with atomics and other kernels
GRAPH_STEPS = 6  # the first ones are not recorded yet

Result = TypeVar("Result")


@dataclass(frozen=True)
class Check:
    """The relative error of a variant, and why it is not acceptable, or None."""

    error: float
    failure: str | None

    def __str__(self) -> str:
        return f"{self.error:.1e}" + (f" ({self.failure})" if self.failure else "")


def expected_trajectory(network: Network, references: dict[str, Reference]) -> Trajectory:
    """Return the reference of a network; compute it if there is none that fits."""
    config = check_config(network.config)
    if network.name in references:
        mismatch = references[network.name].mismatch(config, network.model)
        if mismatch is None:
            return references[network.name].trajectory
        print(f"{network.name}: the reference {mismatch}; computing it again", flush=True)
    return make_reference(config, network.model).trajectory


def check(network: Network, variant: Variant, reference: Trajectory) -> Check:
    """Compare a variant's first steps with the reference, a graph's with unrecorded steps."""
    expected, tolerance, steps = reference, TOLERANCE[variant.precision], CHECK_STEPS
    if variant.recorded:
        tolerance, steps = GRAPH_TOLERANCE, GRAPH_STEPS
        unrecorded = network.training(Variant(variant.precision), CHECK_BATCH)
        expected = run_steps(unrecorded, network.model, steps)
    found = run_steps(network.training(variant, CHECK_BATCH), network.model, steps)
    error = found.distance(expected)
    if not error <= tolerance:
        return Check(error, "too large")
    close = found.loss_distance(expected) <= LOSS_TOLERANCE[variant.precision]
    return Check(error, None if close else "losses differ")


def try_each(
    variants: Iterable[Variant], function: Callable[[Variant], Result], task: str
) -> dict[Variant, Result]:
    """Return the results by variant; one that raises is reported on stderr and left out."""
    results = {}
    for variant in variants:
        try:
            with own_stream():
                results[variant] = function(variant)
        except Exception:  # the other variants can still be measured
            print(f"{task}, {variant}:", file=sys.stderr)
            traceback.print_exc()
    return results
