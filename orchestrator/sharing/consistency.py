"""Two histories of the same run: whether they can both be true, and which one tells more."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from aol.catalog import DATASETS
from aol.config import from_dict
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Status, Store, StoredRun

ENDED = (Status.DONE, Status.UNSOUND, Status.DIVERGED)


class Relation(StrEnum):
    """What a second history of a run is to the one that is there."""

    SAME = "same"
    LONGER = "longer"  # or the first there is
    SHORTER = "shorter"
    OTHER = "other"  # one of them is not what happened


@dataclass(frozen=True)
class History:
    """How a run stands, and what was measured of it."""

    status: Status
    epochs: Mapping[int, Mapping[str, float]]
    margins: bytes | None

    @property
    def ended(self) -> bool:
        """Whether no epoch will be added."""
        return self.status in ENDED

    def __str__(self) -> str:
        return f"{self.status} after epoch {max(self.epochs, default=0)}"


def history_of(run: StoredRun, store: Store) -> History:
    """What a store holds of a run."""
    return History(run.status, store.metrics(run.key), store.margins(run.key))


def find_conflict(here: History, there: History) -> str | None:
    """Why the two cannot be one run, or None if they can."""
    common = here.epochs.keys() & there.epochs.keys()
    if unlike := sorted(epoch for epoch in common if here.epochs[epoch] != there.epochs[epoch]):
        return f"other numbers in epoch {unlike[0]}"
    if here.ended and there.ended and here.status is not there.status:
        return "another end"
    if here.margins and there.margins and here.margins != there.margins:
        return "other margins"
    if _lacks(here, there) and _lacks(there, here):
        return "another course"  # such as an end where the other one went on
    return None


def relation(here: History | None, there: History) -> Relation:
    """What `there` is to `here`."""
    if here is None:
        return Relation.LONGER
    if find_conflict(here, there):
        return Relation.OTHER
    if _lacks(here, there):
        return Relation.LONGER
    return Relation.SHORTER if _lacks(there, here) else Relation.SAME


def _lacks(one: History, other: History) -> bool:
    """Whether the other history has an epoch, an end or margins, and this one does not."""
    return bool(
        other.epochs.keys() - one.epochs.keys()
        or (other.ended and not one.ended)
        or (other.margins and not one.margins)
    )


# What damaged or made-up records raise wherever they are evaluated.
CORRUPT_RECORD_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def find_contradictions(run: StoredRun) -> Iterator[str]:
    """What contradicts what in the record of a run."""
    try:
        config = from_dict(dict(run.config))
        spec = RunSpec(id=run.run_id, name=run.name, profile=run.profile, train=config)
    except CORRUPT_RECORD_ERRORS as error:
        yield f"its settings are damaged: {error!r}"
        return
    if (spec.key, config.digest(), config.seed) != (run.key, run.digest, run.seed):
        yield f"its settings make it {spec.key}"
    if run.epochs != config.epochs:
        epochs = pluralize(run.epochs, "epoch")
        yield f"has {epochs}, its settings say {config.epochs}"
    if run.status is Status.DONE:
        if run.recorded != config.epochs:
            epochs = pluralize(config.epochs, "epoch")
            yield f"is done with {run.recorded} of {epochs} recorded"
        if run.data_fingerprint != DATASETS[config.data.name].fingerprint:
            yield f"was trained on other images than {config.data.name}"
