"""Trained networks as files of their own: which run, from which checkpoint, and where they go."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aol.atomic import atomic_path
from aol.errors import CheckpointError
from aol.export.checkpoint import TrainedNetwork, load_network, read_state
from aol.export.formats import Exported, Format, export_network, require_packages, write_model_file
from aol.training.run_folder import Run
from orchestrator.analysis.tables import finished_run
from orchestrator.errors import OutputError, RequestError
from orchestrator.scheduling.worker import STATE_FILE
from orchestrator.sharing.run_folder import read_run_folder
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.store import Checkpoint, Status, Store


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its network, its numbers and where they come from."""

    run: RunSpec
    network: TrainedNetwork
    values: Mapping[str, float]  # the last epoch's metrics
    certificate: Mapping[
        str, Any
    ]  # `aol.certification.certificate.LipschitzCertificate` and its arithmetic
    device: str | None
    commit: str | None
    packages: Mapping[str, str]
    finished_at: str | None


def from_store(
    experiment: Experiment, store: Store, run_id: int, replicate: int = 0
) -> FinishedRun:
    """A run of a profile, from its newest checkpoint.

    Raises: RequestError, SpecError, CheckpointError, StoreError, RequestError.
    """
    experiment.select([run_id], "export")
    (run,) = (run for run in experiment.replicates([replicate]).runs if run.id == run_id)
    stored = finished_run(experiment, store, run)
    if not stored.checkpoints:
        raise RequestError(
            f"run {run_id} with seed {run.train.seed}: the store knows no checkpoint of it, so it "
            "was trained elsewhere; export the folder that `python -m aol` wrote"
        )
    newest = stored.checkpoints[0]
    return FinishedRun(
        run=run,
        network=_whole(load_network(run.train, _state(newest), newest.path), run, newest.path),
        values=store.final([stored.key])[stored.key],
        certificate=stored.certificate or {},
        device=stored.device,
        commit=stored.git_commit,
        packages=stored.packages or {},
        finished_at=stored.finished_at,
    )


def _state(checkpoint: Checkpoint) -> bytes:
    """The saved state of a checkpoint. Raises: CheckpointError."""
    if not checkpoint.managed:
        return read_state(Path(checkpoint.path))
    from orchestrator.scheduling.storage import open_checkpoint

    try:
        with open_checkpoint(checkpoint.path) as folder:
            return read_state(Path(folder) / STATE_FILE)
    except CheckpointError:
        raise
    except Exception as error:  # Ray and file systems raise anything
        raise CheckpointError(f"{checkpoint.path}: cannot be opened: {error}") from error


def from_folder(folder: Path) -> FinishedRun:
    """A run that `python -m aol` trained, from the folder alone.

    Raises: RequestError, RecordError, CheckpointError.
    """
    if not (folder / "run.json").is_file():
        raise RequestError(f"{folder}: is no run ID, and no folder with a run.json either")
    found = read_run_folder(folder)
    if found.status is not Status.DONE or not found.end:
        raise RequestError(f"{folder}: the run is {found.status}; only a finished one is exported")
    if not found.state:
        raise RequestError(f"{folder}: no state-{len(found.epochs)}.pt there, the finished network")
    state, last = found.state, found.attempts[-1]
    return FinishedRun(
        run=found.run,
        network=_whole(
            load_network(found.run.train, read_state(state), str(state)), found.run, state
        ),
        values=found.epochs[-1].values,
        certificate=found.end.certificate or {},
        device=last.device,
        commit=last.commit,
        packages=last.packages,
        finished_at=str(found.end.time),
    )


def _whole(network: TrainedNetwork, run: RunSpec, where: object) -> TrainedNetwork:
    """The network, if it is that of the last epoch. Raises: CheckpointError."""
    if network.epoch != run.train.epochs:
        raise CheckpointError(
            f"{where}: is from after epoch {network.epoch} of {run.train.epochs}, not the "
            "network whose numbers were recorded"
        )
    return network


def plain_model(finished: FinishedRun, forms: Iterable[Format]) -> Exported:
    """The network folded, with its facts. Raises: ModelError if a format needs a package."""
    for form in forms:
        require_packages(form)
    run = finished.run
    return export_network(finished.network, Run(run.key, run.id, run.name, run.profile, run.train))


def write_model(model: Exported, forms: Iterable[Format], folder: Path) -> list[Path]:
    """Write the model's files into the folder; returns them. Raises: OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [file for form in forms for file in write_model_file(model, form, folder)]
    except OSError as error:
        raise _unwritable(folder, error) from error


def write_card(text: str, folder: Path) -> Path:
    """Write the model card beside the model. Raises: OutputError."""
    path = folder / "README.md"
    try:
        with atomic_path(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return path


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{folder}: cannot be written to: {error.strerror}; choose another --out")


def digests(files: Sequence[Path]) -> dict[str, str]:
    """The SHA-256 of each file by its name."""
    found = {}
    for file in files:
        with file.open("rb") as opened:
            found[file.name] = hashlib.file_digest(opened, "sha256").hexdigest()
    return found
