"""Takes the runs of another store into this one, whole and unchanged."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from orchestrator.errors import RecordError
from orchestrator.formatting import pluralize
from orchestrator.provenance import Provenance
from orchestrator.sharing.consistency import (
    CORRUPT_RECORD_ERRORS,
    History,
    Relation,
    find_conflict,
    find_contradictions,
    history_of,
    relation,
)
from orchestrator.sharing.run_folder import RunFolderContents, read_run_folder
from orchestrator.store import Checkpoint, Epoch, Status, Store, StoredRun, copy_run


class MergeResult(StrEnum):
    """What became of a run of the other store."""

    TAKEN = "taken"
    KNOWN = "there already"
    FURTHER = "further here"
    ALIVE = "left out"
    REFUSED = "refused"

    @property
    def here(self) -> bool:
        """Whether this store has the run now as the other one, or further."""
        return self in (MergeResult.TAKEN, MergeResult.KNOWN, MergeResult.FURTHER)


@dataclass(frozen=True)
class Outcome:
    """What became of one run, and why."""

    run: StoredRun
    fate: MergeResult
    why: str

    def __str__(self) -> str:
        run = f"run {self.run.run_id} {self.run.name}, seed {self.run.seed}"
        return f"{run}: {self.fate}" + (f": {self.why}" if self.why else "")


def merge_stores(other: Store, store: Store, *, replace: bool = False) -> list[Outcome]:
    """Take every run that is not here, or not so far; `replace` takes those in conflict, too.

    Each run is taken as a whole, in one transaction. One that is not what its key says is refused
    in any case. Raises: StoreError, RecordError if the other store's runs cannot be read.
    """
    try:
        theirs = other.runs()
    except CORRUPT_RECORD_ERRORS as error:
        raise RecordError(f"the other store is damaged: {error!r}; nothing was taken") from error
    here = {run.key: run for run in store.runs()}
    outcomes = [_outcome(run, here.get(run.key), other, store, replace=replace) for run in theirs]
    store.recover()  # a run whose driver is gone there is nobody's here
    return outcomes


def summarize_merge(outcomes: Sequence[Outcome]) -> str:
    """What was merged, in one line."""
    fates = Counter(outcome.fate for outcome in outcomes)
    if not fates[MergeResult.TAKEN] and not fates[MergeResult.REFUSED]:
        return "nothing to take"
    return ", ".join(f"{count} {fate}" for fate in MergeResult if (count := fates[fate]))


def _outcome(
    there: StoredRun, here: StoredRun | None, other: Store, store: Store, *, replace: bool
) -> Outcome:
    """Do what is right with one run."""
    for run, where in ((here, "here"), (there, "there")):
        if run and run.alive:
            return Outcome(there, MergeResult.ALIVE, f"it is in training {where}")
    if reasons := list(find_contradictions(there)):
        return Outcome(there, MergeResult.REFUSED, f"{there.key} there: {'; '.join(reasons)}")
    status = Status.INTERRUPTED if there.status is Status.RUNNING else there.status
    taken = f"{status}, {pluralize(there.epoch, 'epoch')}"
    if here:
        ours, theirs = history_of(here, store), history_of(there, other)
        which = relation(ours, theirs)
        if which is Relation.SAME:
            return Outcome(there, MergeResult.KNOWN, "")
        if which is Relation.SHORTER:
            return Outcome(there, MergeResult.FURTHER, f"{ours}, and {theirs} there")
        if which is Relation.OTHER and not replace:
            why = f"{there.key} has {find_conflict(ours, theirs)}: {ours} here, {theirs} there"
            return Outcome(there, MergeResult.REFUSED, f"{why}; --replace takes the other store's")
        taken += f", in place of {ours}"
    _take(there, here, other, store)
    return Outcome(there, MergeResult.TAKEN, taken)


def _take(there: StoredRun, here: StoredRun | None, other: Store, store: Store) -> None:
    """Copy a run; the MLflow run that showed it here goes on to, and has to be told anew."""
    shown = here.mlflow_run_id if here and here.mlflow_run_id else there.mlflow_run_id
    copy_run(other, store, there.key, mlflow_run_id=shown, mlflow_status=None)


def ingest_folders(
    folders: list[Path], store: Store, *, replace: bool = False
) -> tuple[list[tuple[RunFolderContents, bool]], list[str]]:
    """Take every folder that can be taken.

    Returns the runs, each with whether the store lacked something of it, and a line for each
    reason against the other folders.
    """
    runs: list[tuple[RunFolderContents, bool]] = []
    problems: list[str] = []
    for folder in folders:
        try:
            found = read_run_folder(folder)
            runs.append((found, ingest_run(found, store, replace=replace)))
        except RecordError as error:
            problems += str(error).splitlines()
    return runs, problems


def ingest_run(found: RunFolderContents, store: Store, *, replace: bool = False) -> bool:
    """Write a run into the store, whole or not at all; False if it has it already, or more of it.

    Raises: RecordError if the store holds other numbers and they are not to be replaced.
    """
    run = found.run
    there = History(found.status, {item.epoch: item.values for item in found.epochs}, found.margins)
    stored = next(iter(store.runs([run.key])), None)
    here = history_of(stored, store) if stored else None
    which = relation(here, there)
    if here and which is Relation.OTHER and not replace:
        raise RecordError(
            f"{found.folder}: the store has other numbers of run {run.id} ({run.key}), {here}: "
            f"{find_conflict(here, there)}; --replace takes the folder's"
        )
    if which is Relation.SAME:
        _note_state(found, store)
    if which in (Relation.SAME, Relation.SHORTER):
        return False
    with store.at_once():
        if stored:
            store.forget(run.key)
        _write(found, store)
    return True


def _write(found: RunFolderContents, store: Store) -> None:
    run, key = found.run, found.run.key
    store.queue([run])
    ends = [attempt.from_epoch for attempt in found.attempts[1:]] + [len(found.epochs)]
    for attempt, last in zip(found.attempts, ends, strict=True):
        parts = attempt.fingerprints
        data = f"{parts['train']}-{parts['test']}"
        origin = Provenance(attempt.commit, attempt.packages, data, attempt.diff)
        store.start(run, origin, at=attempt.time)
        store.place(key, attempt.host, attempt.device, attempt.from_epoch)
        trained = found.epochs[attempt.from_epoch : last]
        store.record_all(key, [Epoch(item.epoch, item.values, item.time) for item in trained])
    store.finish(
        key,
        found.status,
        error=found.end.error if found.end else None,
        margins=found.margins,
        certificate=found.end.certificate if found.end else None,
        at=found.last_seen,
    )
    _note_state(found, store)


def _note_state(found: RunFolderContents, store: Store) -> None:
    """Note where a finished run's last state lies, unless the store has one of its own."""
    (stored,) = store.runs([found.run.key])
    if found.state and not any(checkpoint.ours for checkpoint in stored.checkpoints):
        store.saved(stored.key, Checkpoint(stored.epoch, str(found.state.absolute())))
        store.keep_checkpoints(stored.key, 1)
