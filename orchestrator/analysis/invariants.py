"""What must hold of every finished run, whatever it reproduces."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aol.certification.certificate import TOLERANCE, LipschitzCertificate
from aol.config import ModelConfig
from aol.models.flops import layers_of
from orchestrator.analysis.margins import load_margins, margins_agree
from orchestrator.analysis.tables import runs_of
from orchestrator.errors import RecordError
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.spec.schema import RADII, Metric
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    from orchestrator.analysis.margins import Margins


def find_violations(experiment: Experiment, store: Store) -> list[str]:
    """A line for each invariant that a finished run of the profile breaks."""
    specs = {run.id: run for run in experiment.runs}
    done = [
        run
        for runs in runs_of(experiment, store).values()
        for run in runs
        if run.status is Status.DONE
    ]
    final = store.final([run.key for run in done])
    return [
        f"run {run.run_id}, seed {run.seed}: {problem}"
        for run in done
        for problem in _problems(run, final.get(run.key, {}), store, specs[run.run_id])
    ]


def _problems(
    run: StoredRun, values: Mapping[str, float], store: Store, spec: RunSpec
) -> Iterator[str]:
    missing = [name for name in RADII if name not in values]
    if missing:
        yield f"the last epoch lacks {', '.join(missing)}"
    else:
        yield from _rises(values)
    try:
        margins = load_margins(store, run)
    except RecordError:
        yield "its margins are damaged"
    else:
        yield from _margin_problems(margins, spec.train.data.test_images, values)
    if run.certificate is None:
        yield "there is no certificate of its Lipschitz bound"
    else:
        found = certificate_violations(run.certificate, spec.train.model)
        yield from (f"the Lipschitz gate: {line}" for line in found)


def certificate_violations(certificate: Mapping[str, Any], model: ModelConfig) -> Iterator[str]:
    """What contradicts soundness: concluded anew from what the gate measured of the network."""
    layers = len(layers_of(model))
    try:
        gate = replace(LipschitzCertificate.from_dict(certificate), tolerance=TOLERANCE)
    except ValueError as error:
        yield f"its record is {error}"
        return
    if len(gate.layers) != layers:
        yield f"{len(gate.layers)} layers are recorded, the network has {layers}"
    yield from gate.violations


def _rises(values: Mapping[str, float]) -> Iterator[str]:
    """Certified accuracy falls with the radius, from the standard accuracy at radius 0."""
    names: list[Metric] = list(RADII)
    for smaller, larger in pairwise(names):
        if values[larger] > values[smaller]:
            yield f"{larger} {values[larger]:.4f} is above {smaller} {values[smaller]:.4f}"


def _margin_problems(
    margins: "Margins | None", images: int, values: Mapping[str, float]
) -> Iterator[str]:
    import numpy as np

    if margins is None:
        yield "there are no margins"
        return
    if len(margins) != images:
        yield f"there are {len(margins)} margins for {images} test images"
        return
    if not np.isfinite(margins).all():
        yield "a margin is not finite"
        return
    for name, radius in RADII.items():
        if name in values and not margins_agree(margins, radius, values[name]):
            yield f"{name} {values[name]:.4f} is not what the margins give"
