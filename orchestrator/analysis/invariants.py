"""Properties that every finished run must have, independent of the published values."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from aol.certification.certificate import TOLERANCE, LipschitzCertificate
from aol.config import ModelConfig
from aol.models.flops import layers_of
from orchestrator.analysis.certificates import attack_outcome
from orchestrator.analysis.margins import (
    ROUNDING,
    MarginReader,
    certified_share,
    margins_agree,
    tied_share,
)
from orchestrator.analysis.tables import finished_runs
from orchestrator.errors import RecordError
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.spec.fields import RADII, Metric
from orchestrator.store import Store, StoredRun

if TYPE_CHECKING:
    from orchestrator.analysis.margins import Margins


def find_violations(
    experiment: Experiment, store: Store, margins: MarginReader | None = None
) -> list[str]:
    """Return a line per invariant that a finished run of the profile violates."""
    margins = margins or MarginReader(store)
    specs = {run.id: run for run in experiment.runs}
    finished = finished_runs(experiment, store)
    final = store.final([run.key for run in finished])
    return [
        f"run {run.run_id}, seed {run.seed}: {violation}"
        for run in finished
        for violation in _run_violations(run, final.get(run.key, {}), margins, specs[run.run_id])
    ]


def certificate_violations(certificate: Mapping[str, Any], model: ModelConfig) -> Iterator[str]:
    """Yield what contradicts soundness, judged by the measurements in a certificate."""
    try:
        measured = replace(LipschitzCertificate.from_dict(certificate), tolerance=TOLERANCE)
    except ValueError as error:
        yield f"its record is {error}"
        return
    layers = len(layers_of(model))
    if len(measured.layers) != layers:
        yield f"{len(measured.layers)} layers are recorded, the network has {layers}"
    yield from measured.violations


def _run_violations(
    run: StoredRun, values: Mapping[str, float], reader: MarginReader, spec: RunSpec
) -> Iterator[str]:
    missing = [name for name in RADII if name not in values]
    if missing:
        yield f"the last epoch lacks {', '.join(missing)}"
    else:
        yield from _order_violations(values)
    try:
        margins = reader.load(run)
    except RecordError:
        yield "its margins are damaged"
    else:
        yield from _margin_violations(margins, spec.train.data.test_images, values)
        yield from _attack_violations(margins, run)
    if run.certificate is None:
        yield "there is no certificate of its Lipschitz bound"
    else:
        for line in certificate_violations(run.certificate, spec.train.model):
            yield f"Lipschitz certificate: {line}"


def _order_violations(values: Mapping[str, float]) -> Iterator[str]:
    """Yield a line where certified accuracy rises with the radius; radius 0 is accuracy."""
    names: list[Metric] = list(RADII)
    for smaller, larger in pairwise(names):
        if values[larger] > values[smaller]:
            yield f"{larger} {values[larger]:.4f} is above {smaller} {values[smaller]:.4f}"


def _margin_violations(
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


def _attack_violations(margins: "Margins | None", run: StoredRun) -> Iterator[str]:
    """Yield a line if an attack leaves fewer images right than are certified, or more than were."""
    try:
        attack = attack_outcome(run)
    except ValueError as error:
        yield f"the record of its attack is damaged: {error}"
        return
    if margins is None or attack is None:
        return
    if not 1 <= attack.images <= len(margins):
        yield f"an attack on {attack.images} of {len(margins)} test images is recorded"
        return
    images = margins[: attack.images]
    least, most = certified_share(images, attack.radius), certified_share(images, 0.0)
    tied = tied_share(images, attack.radius) + ROUNDING
    if not least - tied <= attack.robust <= most + ROUNDING:
        yield (
            f"under attack {attack.robust:.4f} of the images are right, but {least:.4f} are "
            f"certified and {most:.4f} right without an attack"
        )
