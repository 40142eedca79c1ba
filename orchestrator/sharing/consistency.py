"""Checking the record of a run: against another record of the same run, and against itself."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from aol.catalog import DATASETS
from aol.config import from_dict
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import ENDED, Status, Store, StoredRun

# The errors that damaged or made-up records can cause anywhere.
CORRUPT_RECORD_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Relation(StrEnum):
    """The relation of an incoming record of a run to the present one."""

    SAME = "same"
    LONGER = "longer"
    SHORTER = "shorter"
    CONFLICT = "conflict"  # they cannot be records of the same training


@dataclass(frozen=True)
class RunRecord:
    """The status and the measurements of a run."""

    status: Status
    epochs: Mapping[int, Mapping[str, float]]
    margins: bytes | None

    @property
    def ended(self) -> bool:
        """Return whether no epoch will be added."""
        return self.status in ENDED

    def __str__(self) -> str:
        return f"{self.status} after epoch {max(self.epochs, default=0)}"


def read_record(run: StoredRun, store: Store) -> RunRecord:
    """Read the record of a run from its store."""
    return RunRecord(run.status, store.metrics(run.key), store.margins(run.key))


def compare_records(present: RunRecord, incoming: RunRecord) -> Relation:
    """Return how the incoming record relates to the present one."""
    if find_conflict(present, incoming):
        return Relation.CONFLICT
    if _lacks(present, incoming):
        return Relation.LONGER
    return Relation.SHORTER if _lacks(incoming, present) else Relation.SAME


def find_conflict(one: RunRecord, other: RunRecord) -> str | None:
    """Return why the two cannot be records of the same training, or None if they can."""
    common = one.epochs.keys() & other.epochs.keys()
    if differing := sorted(epoch for epoch in common if one.epochs[epoch] != other.epochs[epoch]):
        return f"different metrics in epoch {differing[0]}"
    if one.ended and other.ended and one.status is not other.status:
        return "a different outcome"
    if one.margins and other.margins and one.margins != other.margins:
        return "different margins"
    if _lacks(one, other) and _lacks(other, one):  # such as epochs after the other's end
        return "a different history"
    return None


def find_contradictions(run: StoredRun) -> Iterator[str]:
    """Yield the contradictions within the record of a run."""
    try:
        config = from_dict(dict(run.config))
        spec = RunSpec(id=run.run_id, name=run.name, profile=run.profile, train=config)
    except CORRUPT_RECORD_ERRORS as error:
        yield f"its settings are damaged: {error!r}"
        return
    if (spec.key, config.digest(), config.seed) != (run.key, run.digest, run.seed):
        yield f"its settings belong to the key {spec.key}"
    if run.epochs != config.epochs:
        yield f"has {pluralize(run.epochs, 'epoch')}, its settings have {config.epochs}"
    if run.status is Status.DONE:
        if run.recorded != config.epochs:
            epochs = pluralize(config.epochs, "epoch")
            yield f"is done, but of {epochs}, number {run.recorded + 1} is not recorded"
        if run.data_fingerprint != DATASETS[config.data.name].fingerprint:
            yield f"was trained on other images than {config.data.name}"


def _lacks(one: RunRecord, other: RunRecord) -> bool:
    """Return whether only the other record has an epoch, an end or margins."""
    return bool(
        other.epochs.keys() - one.epochs.keys()
        or (other.ended and not one.ended)
        or (other.margins and not one.margins)
    )
