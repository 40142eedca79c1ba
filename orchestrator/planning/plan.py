"""What an invocation would do with each run and why."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from aol.config import TrainConfig, flatten, from_dict
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.store import Checkpoint, Status, Store, StoredRun


class Action(StrEnum):
    """What becomes of a run."""

    NEW = "new"
    CONTINUE = "continue"
    CHANGED = "changed"
    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"
    UNSOUND = "unsound"


@dataclass(frozen=True)
class PlannedRun:
    """A run, what will be done with it, and why."""

    run: RunSpec
    action: Action
    reason: str
    epoch: int = 0  # where training (re)starts, in completed epochs
    checkpoints: tuple[Checkpoint, ...] = ()  # to continue from, newest first

    @property
    def todo(self) -> bool:
        """Whether the run trains."""
        return self.action in (Action.NEW, Action.CONTINUE, Action.CHANGED)


def plan(
    experiment: Experiment, store: Store | None = None, rerun: Iterable[int] = ()
) -> list[PlannedRun]:
    """Return the action for each run of the experiment, in its order, and the reason.

    Without a store every run is new. Runs of the IDs in `rerun` start anew whatever it holds.

    Raises: StoreError.
    """
    stored = store.runs(ids={run.id for run in experiment.runs}) if store else []
    return make_plan(experiment, stored, rerun)


def make_plan(
    experiment: Experiment, stored: Iterable[StoredRun], rerun: Iterable[int] = ()
) -> list[PlannedRun]:
    """What to do with each run of the experiment, given what the store holds, in its order.

    Runs of the IDs in `rerun` start anew whatever the store holds.
    """
    known = {run.key: run for run in stored}
    anew = set(rerun)
    return [
        PlannedRun(run, Action.NEW, "asked for by --rerun")
        if run.id in anew
        else _planned(run, known)
        for run in experiment.runs
    ]


def _planned(run: RunSpec, known: Mapping[str, StoredRun]) -> PlannedRun:
    stored = known.get(run.key)
    if stored is None:
        return _without_history(run, known.values())
    if stored.alive:
        return PlannedRun(run, Action.RUNNING, f"driver {stored.driver}", stored.epoch)
    if stored.status is Status.DONE and stored.recorded == stored.epochs:
        trained = "its one epoch" if stored.epochs == 1 else f"all {stored.epochs} epochs"
        return PlannedRun(run, Action.DONE, trained, stored.epochs)
    if stored.status in (Status.DIVERGED, Status.UNSOUND):
        return _given_up(run, stored)
    usable = usable_checkpoints(stored)
    was = stored.status if stored.status is not Status.RUNNING else Status.INTERRUPTED
    if usable:
        return PlannedRun(
            run, Action.CONTINUE, f"{was} after epoch {stored.epoch}", usable[0].epoch, usable
        )
    if stored.recorded != stored.epoch:
        missing = stored.epoch - stored.recorded
        lacking = pluralize(missing, "epoch is", "epochs are")
        return PlannedRun(run, Action.NEW, f"{was}, and {lacking} not recorded")
    if stored.epoch:
        return PlannedRun(run, Action.NEW, f"{was} before its first checkpoint")
    return PlannedRun(run, Action.NEW, str(was) if was is not Status.PENDING else "never started")


def _given_up(run: RunSpec, stored: StoredRun) -> PlannedRun:
    """A run that would end the same way if it were trained again as it is."""
    if stored.status is Status.UNSOUND:
        reason = f"{stored.error}; mend the layer, then --rerun {run.id}"
        return PlannedRun(run, Action.UNSOUND, reason, stored.epoch)
    reason = f"diverged after epoch {stored.epoch}; change its settings or --rerun {run.id}"
    return PlannedRun(run, Action.DIVERGED, reason, stored.epoch)


def _without_history(run: RunSpec, known: Iterable[StoredRun]) -> PlannedRun:
    earlier = [
        other
        for other in known
        if (other.run_id, other.seed, other.profile) == (run.id, run.train.seed, run.profile)
    ]
    if not earlier:
        return PlannedRun(run, Action.NEW, "not in the store")
    return PlannedRun(run, Action.CHANGED, changes(earlier[-1].config, run.train))


def usable_checkpoints(stored: StoredRun) -> tuple[Checkpoint, ...]:
    """The checkpoints up to which every epoch is recorded, newest first."""
    if stored.recorded != stored.epoch:
        return ()
    return tuple(item for item in stored.checkpoints if item.epoch <= stored.epoch)


def changes(before: Mapping[str, object], now: TrainConfig) -> str:
    """The settings that differ, `epochs 10 → 20`."""
    old, new = flatten(from_dict(dict(before))), flatten(now)
    return ", ".join(
        f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]
    )


def as_rows(plan: Iterable[PlannedRun]) -> list[dict[str, object]]:
    """The plan as plain values, for tables and JSON."""
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
