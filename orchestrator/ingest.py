"""Takes the folders that `python -m aol` wrote into the store, as if the runs had trained here."""

from pathlib import Path

from orchestrator.folders import FolderError, TrainedElsewhere, read
from orchestrator.histories import History, Standing, contradiction, history_of, standing
from orchestrator.provenance import Provenance
from orchestrator.store import Checkpoint, Epoch, Store


class IngestError(Exception):
    """Folders that are damaged, or say something else than the store, a line per reason."""

    exit_code = 1


def ingest(
    folders: list[Path], store: Store, *, replace: bool = False
) -> tuple[list[tuple[TrainedElsewhere, bool]], list[str]]:
    """Take every folder that can be taken.

    Returns the runs, each with whether the store lacked something of it, and a line for each
    reason against the other folders.
    """
    runs: list[tuple[TrainedElsewhere, bool]] = []
    problems: list[str] = []
    for folder in folders:
        try:
            found = read(folder)
            runs.append((found, take(found, store, replace=replace)))
        except (FolderError, IngestError) as error:
            problems += str(error).splitlines()
    return runs, problems


def take(found: TrainedElsewhere, store: Store, *, replace: bool = False) -> bool:
    """Write a run into the store, whole or not at all; False if it has it already, or more of it.

    Raises: IngestError if the store holds other numbers and they are not to be replaced.
    """
    run = found.run
    there = History(found.status, {item.epoch: item.values for item in found.epochs}, found.margins)
    stored = next(iter(store.runs([run.key])), None)
    here = history_of(stored, store) if stored else None
    which = standing(here, there)
    if here and which is Standing.OTHER and not replace:
        raise IngestError(
            f"{found.folder}: the store has other numbers of run {run.id} ({run.key}), {here}: "
            f"{contradiction(here, there)}; --replace takes the folder's"
        )
    if which is Standing.SAME:
        _note_state(found, store)
    if which in (Standing.SAME, Standing.SHORTER):
        return False
    with store.at_once():
        if stored:
            store.forget(run.key)
        _write(found, store)
    return True


def _write(found: TrainedElsewhere, store: Store) -> None:
    run, key = found.run, found.run.key
    store.queue([run])
    ends = [attempt.from_epoch for attempt in found.attempts[1:]] + [len(found.epochs)]
    for attempt, last in zip(found.attempts, ends, strict=True):
        parts = attempt.fingerprints
        data = f"{parts['train']}-{parts['test']}"
        origin = Provenance(attempt.commit, attempt.packages, data, attempt.diff)
        store.start(run, origin, at=str(attempt.time))
        store.place(key, attempt.host, attempt.device, attempt.from_epoch)
        trained = found.epochs[attempt.from_epoch : last]
        store.record_all(key, [Epoch(item.epoch, item.values, str(item.time)) for item in trained])
    store.finish(
        key,
        found.status,
        error=found.end.error if found.end else None,
        margins=found.margins,
        certificate=found.end.certificate if found.end else None,
        at=found.last_sign,
    )
    _note_state(found, store)


def _note_state(found: TrainedElsewhere, store: Store) -> None:
    """Note where a finished run's last state lies, unless the store has one of its own."""
    (stored,) = store.runs([found.run.key])
    if found.state and not any(checkpoint.ours for checkpoint in stored.checkpoints):
        store.saved(stored.key, Checkpoint(stored.epoch, str(found.state.absolute())))
        store.keep_checkpoints(stored.key, 1)
