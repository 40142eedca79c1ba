"""Takes the runs of another store into this one, whole and unchanged."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.coherence import HOSTILE, incoherences
from orchestrator.histories import Standing, contradiction, history_of, standing
from orchestrator.numbers import number_of
from orchestrator.store import Status, Store, StoredRun, copy_run


class MergeError(Exception):
    """Runs that cannot be taken, a line each."""

    exit_code = 1


class Fate(StrEnum):
    """What became of a run of the other store."""

    TAKEN = "taken"
    KNOWN = "there already"
    FURTHER = "further here"
    ALIVE = "left out"
    REFUSED = "refused"

    @property
    def here(self) -> bool:
        """Whether this store has the run now as the other one, or further."""
        return self in (Fate.TAKEN, Fate.KNOWN, Fate.FURTHER)


@dataclass(frozen=True)
class Outcome:
    """What became of one run, and why."""

    run: StoredRun
    fate: Fate
    why: str

    def __str__(self) -> str:
        run = f"run {self.run.run_id} {self.run.name}, seed {self.run.seed}"
        return f"{run}: {self.fate}" + (f": {self.why}" if self.why else "")


def merge(other: Store, store: Store, *, replace: bool = False) -> list[Outcome]:
    """Take every run that is not here, or not so far; `replace` takes those in conflict, too.

    Each run is taken as a whole, in one transaction. One that is not what its key says is refused
    in any case. Raises: StoreError, MergeError if the other store's runs cannot be read.
    """
    try:
        theirs = other.runs()
    except HOSTILE as error:
        raise MergeError(f"the other store is damaged: {error!r}; nothing was taken") from error
    here = {run.key: run for run in store.runs()}
    outcomes = [_outcome(run, here.get(run.key), other, store, replace=replace) for run in theirs]
    store.recover()  # a run whose driver is gone there is nobody's here
    return outcomes


def counted(outcomes: Sequence[Outcome]) -> str:
    """What was merged, in one line."""
    fates = Counter(outcome.fate for outcome in outcomes)
    if not fates[Fate.TAKEN] and not fates[Fate.REFUSED]:
        return "nothing to take"
    return ", ".join(f"{count} {fate}" for fate in Fate if (count := fates[fate]))


def _outcome(
    there: StoredRun, here: StoredRun | None, other: Store, store: Store, *, replace: bool
) -> Outcome:
    """Do what is right with one run."""
    for run, where in ((here, "here"), (there, "there")):
        if run and run.alive:
            return Outcome(there, Fate.ALIVE, f"it is in training {where}")
    if reasons := list(incoherences(there)):
        return Outcome(there, Fate.REFUSED, f"{there.key} there: {'; '.join(reasons)}")
    status = Status.INTERRUPTED if there.status is Status.RUNNING else there.status
    taken = f"{status}, {number_of(there.epoch, 'epoch')}"
    if here:
        ours, theirs = history_of(here, store), history_of(there, other)
        which = standing(ours, theirs)
        if which is Standing.SAME:
            return Outcome(there, Fate.KNOWN, "")
        if which is Standing.SHORTER:
            return Outcome(there, Fate.FURTHER, f"{ours}, and {theirs} there")
        if which is Standing.OTHER and not replace:
            why = f"{there.key} has {contradiction(ours, theirs)}: {ours} here, {theirs} there"
            return Outcome(there, Fate.REFUSED, f"{why}; --replace takes the other store's")
        taken += f", in place of {ours}"
    _take(there, here, other, store)
    return Outcome(there, Fate.TAKEN, taken)


def _take(there: StoredRun, here: StoredRun | None, other: Store, store: Store) -> None:
    """Copy a run; the MLflow run that showed it here goes on to, and has to be told anew."""
    shown = here.mlflow_run_id if here and here.mlflow_run_id else there.mlflow_run_id
    copy_run(other, store, there.key, mlflow_run_id=shown, mlflow_status=None)
