"""Importing runs into a store, from another store or from run folders.

A run is imported as a whole or not at all. The more complete record wins; conflicts are rejected.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from aol.config import from_dict
from orchestrator.errors import RecordError, StoreError
from orchestrator.formatting import pluralize
from orchestrator.provenance import Provenance
from orchestrator.sharing.consistency import (
    Relation,
    RunRecord,
    compare_records,
    find_conflict,
    find_contradictions,
    read_record,
)
from orchestrator.sharing.run_folder import RunFolderContents, read_run_folder
from orchestrator.store import Checkpoint, Epoch, Status, Store, StoredRun, copy_run
from orchestrator.store.records import settings_conflict


class MergeResult(StrEnum):
    """The result of importing one run."""

    IMPORTED = "imported"
    UNCHANGED = "unchanged"
    KEPT = "kept"  # the present record is more complete
    SKIPPED = "skipped"  # the run is in training
    REJECTED = "rejected"

    @property
    def in_store(self) -> bool:
        """Return whether the store now has the incoming record or a more complete one."""
        return self in (MergeResult.IMPORTED, MergeResult.UNCHANGED, MergeResult.KEPT)


@dataclass(frozen=True)
class MergedRun:
    """The result for one run of the other store, with the reason."""

    run: StoredRun
    result: MergeResult
    reason: str

    def __str__(self) -> str:
        run = f"run {self.run.run_id} {self.run.name}, seed {self.run.seed}"
        return f"{run}: {self.result}" + (f": {self.reason}" if self.reason else "")


def merge_stores(other: Store, store: Store, *, replace: bool = False) -> list[MergedRun]:
    """Import every run of another store; `replace` imports conflicting records as well.

    A run that contradicts itself is always rejected. Raises: StoreError.
    """
    incoming = other.runs()
    present = {run.key: run for run in store.runs()}
    merged = [_merge(run, present.get(run.key), other, store, replace=replace) for run in incoming]
    store.recover()  # an imported run whose driver is dead is interrupted
    return merged


def summarize_merge(merged: Sequence[MergedRun]) -> str:
    """Return one line with the number of runs of each result."""
    counts = Counter(one.result for one in merged)
    results = [f"{counts[result]} {result}" for result in MergeResult if counts[result]]
    return f"{pluralize(len(merged), 'run')} there: {', '.join(results) or 'nothing to import'}"


def ingest_folders(
    folders: list[Path], store: Store, *, replace: bool = False
) -> tuple[list[tuple[RunFolderContents, bool]], list[str]]:
    """Import every run folder that can be imported.

    Returns the runs, each with whether it changed the store, and a line per reason why another
    folder was rejected.
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
    """Import a run folder in one transaction; return whether it changed the store.

    Raises: RecordError if the store has a conflicting record, unless `replace`, or a run of other
    settings under the same key.
    """
    key = found.run.key
    result, reason = MergeResult.IMPORTED, ""
    if stored := store.runs([key]):
        if conflict := settings_conflict(stored[0], found.run.train):
            raise RecordError(f"{found.folder}: {conflict}")
        epochs = {item.epoch: item.values for item in found.epochs}
        incoming = RunRecord(found.status, epochs, found.margins)
        result, reason = _decide(stored[0], incoming, store, replace=replace)
    if result is MergeResult.REJECTED:
        raise RecordError(f"{found.folder}: {reason}")
    if result is MergeResult.UNCHANGED:
        _add_final_state(found, store)
    if result is MergeResult.IMPORTED:
        with store.transaction():
            store.delete_run(key)
            _write(found, store)
    return result is MergeResult.IMPORTED


def _decide(
    present: StoredRun, incoming: RunRecord, store: Store, *, replace: bool
) -> tuple[MergeResult, str]:
    """Return what to do with an incoming record of a run that the store has, and why."""
    record = read_record(present, store)
    relation = compare_records(record, incoming)
    if relation is Relation.SAME:
        return MergeResult.UNCHANGED, ""
    if relation is Relation.SHORTER:
        return MergeResult.KEPT, f"{record} here, {incoming} there"
    if relation is Relation.CONFLICT and not replace:
        return MergeResult.REJECTED, (
            f"{present.key} has {find_conflict(record, incoming)}: {record} here, {incoming} "
            "there; pass --replace to import it anyway"
        )
    return MergeResult.IMPORTED, f"replaces {record}"


def _merge(
    incoming: StoredRun, present: StoredRun | None, other: Store, store: Store, *, replace: bool
) -> MergedRun:
    """Import one run of another store if possible."""
    for run, where in ((present, "here"), (incoming, "there")):
        if run and run.alive:
            return MergedRun(incoming, MergeResult.SKIPPED, f"it is in training {where}")
    if reasons := list(find_contradictions(incoming)):
        reason = f"{incoming.key} there: {'; '.join(reasons)}"
        return MergedRun(incoming, MergeResult.REJECTED, reason)
    if present and (line := settings_conflict(present, from_dict(dict(incoming.config)))):
        return MergedRun(incoming, MergeResult.REJECTED, line)
    try:
        record = read_record(incoming, other)
        other.attempts(incoming.key)  # copied unchecked, so damage must be found here
        other.recorded_at(incoming.key)
    except StoreError as error:
        return MergedRun(incoming, MergeResult.REJECTED, str(error))
    status = Status.INTERRUPTED if incoming.status is Status.RUNNING else incoming.status
    imported = f"{status}, {pluralize(incoming.epoch, 'epoch')}"
    if present:
        result, reason = _decide(present, record, store, replace=replace)
        if result is not MergeResult.IMPORTED:
            return MergedRun(incoming, result, reason)
        imported += f"; {reason}"
    # The MLflow run of this store continues to show the run, but needs the new record.
    mlflow_run_id = (present and present.mlflow_run_id) or incoming.mlflow_run_id
    copy_run(other, store, incoming.key, mlflow_run_id=mlflow_run_id, mlflow_status=None)
    return MergedRun(incoming, MergeResult.IMPORTED, imported)


def _write(found: RunFolderContents, store: Store) -> None:
    run, key = found.run, found.run.key
    store.queue([run])
    ends = [attempt.from_epoch for attempt in found.attempts[1:]] + [len(found.epochs)]
    for attempt, last in zip(found.attempts, ends, strict=True):
        parts = attempt.fingerprints
        data = f"{parts['train']}-{parts['test']}"
        origin = Provenance(
            attempt.commit, attempt.packages, data, attempt.diff, gpu_driver=attempt.driver
        )
        store.start(run, origin, at=attempt.time)
        store.set_placement(key, attempt.host, attempt.device, attempt.from_epoch)
        trained = found.epochs[attempt.from_epoch : last]
        epochs = [Epoch(item.epoch, item.values, item.time) for item in trained]
        store.record_epochs(key, epochs)
    store.finish(
        key,
        found.status,
        error=found.end.error if found.end else None,
        margins=found.margins,
        certificate=found.end.certificate if found.end else None,
        at=found.last_seen,
    )
    _add_final_state(found, store)


def _add_final_state(found: RunFolderContents, store: Store) -> None:
    """Add the folder's final state as a checkpoint unless the store has one of Ray's."""
    (stored,) = store.runs([found.run.key])
    if found.state and not any(checkpoint.managed for checkpoint in stored.checkpoints):
        store.add_checkpoint(stored.key, Checkpoint(stored.epoch, str(found.state.absolute())))
        store.keep_checkpoints(stored.key, 1)
