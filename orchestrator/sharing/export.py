"""Finished runs as exported networks: find the run, load its network, write the files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aol.atomic import atomic_path
from aol.errors import CheckpointError
from aol.export.formats import (
    ExportedModel,
    Format,
    export_network,
    require_packages,
    write_model_file,
)
from aol.export.trained_network import TrainedNetwork, load_network
from aol.training.records import Run
from aol.training.run_folder import RunFolder
from orchestrator.analysis.parts import describe_commits
from orchestrator.analysis.tables import finished_run
from orchestrator.errors import OutputError, RequestError
from orchestrator.scheduling.storage import STATE_FILE, CheckpointStorage, open_checkpoint
from orchestrator.sharing.run_folder import read_run_folder
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.store import Attempt, Checkpoint, Status, Store


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with its network, its numbers and their origin."""

    run: RunSpec
    network: TrainedNetwork
    values: Mapping[str, float]  # the last epoch's metrics
    certificate: Mapping[str, Any]  # `LipschitzCertificate` as plain values, and its arithmetic
    device: str | None
    commit: str | None
    packages: Mapping[str, str]
    finished_at: str | None


def from_store(
    experiment: Experiment,
    store: Store,
    run_id: int,
    replicate: int = 0,
    *,
    storage: str | None = None,
) -> FinishedRun:
    """Return a finished run of a profile with the network of its newest checkpoint.

    It is read from `storage` if that is given and has it, else from where it was saved.

    Raises: RequestError, SpecError, CheckpointError, StoreError.
    """
    experiment.select([run_id], "export")
    (run,) = (run for run in experiment.replicates([replicate]).runs if run.id == run_id)
    stored = finished_run(experiment, store, run)
    if not stored.checkpoints:
        raise RequestError(
            f"run {run_id} with seed {run.train.seed}: the store has no checkpoint of it, so it "
            "was trained elsewhere; export the folder that `python -m aol` wrote"
        )
    newest = stored.checkpoints[0]
    return FinishedRun(
        run=run,
        network=_load_stored(run, newest, storage),
        values=store.final([stored.key])[stored.key],
        certificate=stored.certificate or {},
        device=stored.device,
        commit=describe_commits(store.attempts(stored.key), stored.epoch),
        packages=stored.packages or {},
        finished_at=stored.finished_at,
    )


def _load_stored(run: RunSpec, checkpoint: Checkpoint, storage: str | None) -> TrainedNetwork:
    """Return the network of a checkpoint in the store. Raises: CheckpointError."""
    if not checkpoint.managed:
        return _load_final(run, Path(checkpoint.path))
    location = checkpoint.path
    if storage is not None:
        location = CheckpointStorage(storage).locate(location)
    try:
        with open_checkpoint(location) as folder:
            return _load_final(run, Path(folder) / STATE_FILE)
    except CheckpointError:
        raise
    except Exception as error:  # file systems raise anything
        raise CheckpointError(f"{location}: cannot be opened: {error}") from error


def from_folder(folder: Path) -> FinishedRun:
    """Return a finished run that `python -m aol` trained, from its folder alone.

    Raises: RequestError, RecordError, CheckpointError.
    """
    if not RunFolder(folder).run_file.is_file():
        raise RequestError(f"{folder}: is neither a run ID nor a folder with a run.json")
    found = read_run_folder(folder)
    if found.status is not Status.DONE or not found.end:
        raise RequestError(f"{folder}: the run is {found.status}; only finished runs are exported")
    if not found.state:
        raise RequestError(f"{folder}: no state-{len(found.epochs)}.pt there, the finished network")
    last = found.attempts[-1]
    attempts = [
        Attempt(
            from_epoch=one.from_epoch,
            driver=one.host,
            started_at=one.time,
            git_commit=one.commit,
        )
        for one in found.attempts
    ]
    return FinishedRun(
        run=found.run,
        network=_load_final(found.run, found.state),
        values=found.epochs[-1].values,
        certificate=found.end.certificate or {},
        device=last.device,
        commit=describe_commits(attempts, len(found.epochs)),
        packages=last.packages,
        finished_at=found.end.time,
    )


def _load_final(run: RunSpec, file: Path) -> TrainedNetwork:
    """Return the network of a checkpoint after the last epoch. Raises: CheckpointError."""
    network = load_network(run.train, file)
    if network.epoch != run.train.epochs:
        raise CheckpointError(
            f"{file}: is from after epoch {network.epoch} of {run.train.epochs}, not the "
            "network whose numbers were recorded"
        )
    return network


def fold_run(finished: FinishedRun, forms: Iterable[Format]) -> ExportedModel:
    """Return the network folded, with its facts. Raises: ModelError if a package is missing."""
    for form in forms:
        require_packages(form)
    run = finished.run
    return export_network(finished.network, Run(run.key, run.id, run.name, run.profile, run.train))


def write_model(model: ExportedModel, forms: Iterable[Format], folder: Path) -> list[Path]:
    """Write the model's files into the folder; return their paths. Raises: OutputError."""
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
