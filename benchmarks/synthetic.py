"""Synthetic finished runs for the benchmark of the store."""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from aol.catalog import DATASETS
from aol.certification.certificate import TOLERANCE, LayerBound, LipschitzCertificate
from aol.models.flops import layers_of
from aol.training.records import Attempt, End, Epoch, Outcome, Time
from orchestrator.analysis.margins import certified_share
from orchestrator.sharing.run_folder import RunFolderContents
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.spec.fields import RADII
from orchestrator.spec.loader import SpecFile

EXPERIMENTS = Path(__file__).parent.parent / "experiments.yaml"
SEEDS = 5  # replicates of each run of the paper
TIME = Time("2026-01-01T00:00:00.000+00:00")
PACKAGES = {"torch": "2.13.0", "numpy": "2.4.0", "ray": "2.60.0", "mlflow": "3.17.0"}


def paper_experiment(epochs: int) -> Experiment:
    """Return the paper's profile with another number of epochs."""
    experiment = SpecFile(EXPERIMENTS).experiment("paper", [f"epochs={epochs}"])
    runs = tuple(run.model_copy(update={"profile": "paper"}) for run in experiment.runs)
    return replace(experiment, profile="paper", runs=runs)


def synthetic_runs(count: int, experiment: Experiment) -> Iterator[RunFolderContents]:
    """Yield finished runs: first some with other settings, then the paper's with replicates."""
    papers = experiment.replicates(range(SEEDS)).runs
    for number in range(count - len(papers)):
        yield finish(vary(papers[number % len(papers)], number), number, images=0)
    for number, run in enumerate(papers):
        yield finish(run, number, images=run.train.data.test_images)


def vary(run: RunSpec, number: int) -> RunSpec:
    """Return the run with unique settings, in another profile."""
    optimizer = replace(run.train.optimizer, l2=1 + 1e-6 * number)
    changed = {"train": replace(run.train, optimizer=optimizer), "profile": "other"}
    return run.model_copy(update=changed)


def finish(run: RunSpec, number: int, *, images: int) -> RunFolderContents:
    """Return the run with random results; without images it has no margins."""
    random = np.random.default_rng(number)
    margins = random.normal(0.5, 1.0, images or 100).astype("<f4")
    accuracies = {str(name): certified_share(margins, radius) for name, radius in RADII.items()}
    epochs = [
        Epoch(epoch=epoch, time=TIME, values=_values(accuracies, loss))
        for epoch, loss in enumerate(random.random(run.train.epochs).tolist(), start=1)
    ]
    return RunFolderContents(
        Path(run.key),
        run,
        (
            Attempt(
                from_epoch=0,
                time=TIME,
                host="host",
                device="GPU",
                commit="0" * 40,
                packages=PACKAGES,
                fingerprints=dict(DATASETS[run.train.data.name].fingerprints.items()),
            ),
        ),
        tuple(epochs),
        End(outcome=Outcome.DONE, time=TIME, error=None, certificate=certificate(run)),
        margins.tobytes() if images else None,
    )


def certificate(run: RunSpec) -> dict[str, Any]:
    """Return the certificate of a sound network of the run's size."""
    names = (f"layer {number}" for number in range(len(layers_of(run.train.model))))
    layers = tuple(LayerBound(name, 1.0, 0.9) for name in names)
    sound = LipschitzCertificate(layers, ratio=0.5, score_error=1e-12, tolerance=TOLERANCE)
    return {"arithmetic": "float64", **sound.as_dict()}


def _values(accuracies: dict[str, float], loss: float) -> dict[str, float]:
    """Return the eleven metrics of an epoch."""
    timed = {"learning_rate": 0.001, "images_per_s": 5000.0, "seconds": 10 + loss}
    return accuracies | timed | {"train_loss": loss, "train_accuracy": 0.5, "test_loss": 1 + loss}


def write_folder(found: RunFolderContents, folder: Path) -> Path:
    """Write the run folder that `python -m aol` would have written, and return it."""
    run, place = found.run, folder / found.run.key
    place.mkdir(parents=True)
    described = {"key": run.key, "id": run.id, "name": run.name, "profile": run.profile}
    described["settings"] = asdict(run.train)
    (place / "run.json").write_text(json.dumps(described), encoding="utf-8")
    for name, lines in (("attempts", found.attempts), ("metrics", found.epochs)):
        text = "".join(f"{json.dumps(vars(line))}\n" for line in lines)
        (place / f"{name}.jsonl").write_text(text, encoding="utf-8")
    if found.end:
        (place / "end.json").write_text(json.dumps(vars(found.end)), encoding="utf-8")
    (place / "margins.f32").write_bytes(found.margins or b"")
    return place
