"""The plan of an invocation: an action for each run, with its reason."""

import itertools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum

from orchestrator.errors import RecordError
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.store import Checkpoint, Status, Store, StoredRun
from orchestrator.store.records import describe_changes, settings_conflict


class Action(StrEnum):
    """The action planned for a run."""

    NEW = "new"
    CONTINUE = "continue"
    CHANGED = "changed"
    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"
    UNSOUND = "unsound"


@dataclass(frozen=True)
class PlannedRun:
    """A run, its action and the reason."""

    run: RunSpec
    action: Action
    reason: str
    epoch: int = 0  # completed epochs when training starts
    checkpoints: tuple[Checkpoint, ...] = ()  # to continue from, newest first

    @property
    def todo(self) -> bool:
        """Return whether the run is to be trained."""
        return self.action in (Action.NEW, Action.CONTINUE, Action.CHANGED)


def plan(
    experiment: Experiment, store: Store | None = None, rerun: Iterable[int] = ()
) -> list[PlannedRun]:
    """Return the action for each run of the experiment, in its order, and the reason.

    Without a store every run is new. Runs of the IDs in `rerun` start anew whatever it holds.

    Raises: StoreError, RecordError.
    """
    stored = store.runs(ids={run.id for run in experiment.runs}) if store else []
    return make_plan(experiment, stored, rerun)


def make_plan(
    experiment: Experiment, stored: Iterable[StoredRun], rerun: Iterable[int] = ()
) -> list[PlannedRun]:
    """Return the action for each run of the experiment, in its order.

    The runs with IDs in `rerun` are trained from the start, whatever is stored.

    Raises: RecordError if a run has the key of a stored one with other settings.
    """
    known = list(stored)
    by_key = {run.key: run for run in known}
    hits = [(by_key[run.key], run.train) for run in experiment.runs if run.key in by_key]
    if conflicts := [line for line in itertools.starmap(settings_conflict, hits) if line]:
        raise RecordError("\n".join(conflicts))
    newest = {(run.run_id, run.seed, run.profile): run for run in known}  # of all its settings
    from_start = set(rerun)

    def planned(run: RunSpec) -> PlannedRun:
        if run.id in from_start:
            return PlannedRun(run, Action.NEW, "requested with --rerun")
        if found := by_key.get(run.key):
            return _plan_known(run, found)
        if earlier := newest.get((run.id, run.train.seed, run.profile)):
            return PlannedRun(run, Action.CHANGED, describe_changes(earlier.config, run.train))
        return PlannedRun(run, Action.NEW, "not in the store")

    return [planned(run) for run in experiment.runs]


def usable_checkpoints(stored: StoredRun) -> tuple[Checkpoint, ...]:
    """Return the checkpoints up to which every epoch is recorded, newest first."""
    return tuple(item for item in stored.checkpoints if item.epoch <= stored.recorded)


def as_rows(plan: Iterable[PlannedRun]) -> list[dict[str, object]]:
    """Return the plan as plain values, for tables and JSON."""
    return [
        {
            "id": item.run.id,
            "name": item.run.name,
            "profile": item.run.profile,
            "dataset": item.run.train.data.name,
            "seed": item.run.train.seed,
            "action": str(item.action),
            "from_epoch": item.epoch,
            "epochs": item.run.train.epochs,
            "reason": item.reason,
            "key": item.run.key,
            "settings": asdict(item.run.train),
        }
        for item in plan
    ]


def _plan_known(run: RunSpec, stored: StoredRun) -> PlannedRun:
    if stored.alive:
        return PlannedRun(run, Action.RUNNING, f"driver {stored.driver}", stored.epoch)
    if stored.status is Status.DONE and stored.recorded == stored.epochs:
        reason = f"trained {pluralize(stored.epochs, 'epoch')}"
        return PlannedRun(run, Action.DONE, reason, stored.epochs)
    if stored.status is Status.UNSOUND:
        reason = f"{stored.error}; fix the layer, then --rerun {run.id}"
        return PlannedRun(run, Action.UNSOUND, reason, stored.epoch)
    if stored.status is Status.DIVERGED:
        reason = f"diverged after epoch {stored.epoch}; change its settings or --rerun {run.id}"
        return PlannedRun(run, Action.DIVERGED, reason, stored.epoch)
    return _plan_unfinished(run, stored)


def _plan_unfinished(run: RunSpec, stored: StoredRun) -> PlannedRun:
    status = Status.INTERRUPTED if stored.status is Status.RUNNING else stored.status
    gap = f", but epoch {stored.recorded + 1} is not recorded"
    if checkpoints := usable_checkpoints(stored):
        reason = f"{status} after epoch {stored.epoch}"
        reason += gap if stored.recorded != stored.epoch else ""
        return PlannedRun(run, Action.CONTINUE, reason, checkpoints[0].epoch, checkpoints)
    if stored.recorded != stored.epoch:
        reason = f"{status}{gap}"
    elif stored.epoch:
        reason = f"{status} before its first checkpoint"
    else:
        reason = "never started" if status is Status.PENDING else str(status)
    return PlannedRun(run, Action.NEW, reason)
