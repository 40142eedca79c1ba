"""Comparing the settings of stored runs with those of an experiment."""

from collections.abc import Mapping
from dataclasses import asdict, replace

from aol.config import TrainConfig, flatten, from_dict
from orchestrator.errors import RecordError
from orchestrator.store.records import StoredRun


def describe_changes(before: Mapping[str, object], now: TrainConfig) -> str:
    """Return the settings that differ, such as `epochs 10 → 20`."""
    old, new = flatten(from_dict(dict(before))), flatten(now)
    return ", ".join(
        f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]
    )


def check_settings(stored: StoredRun, train: TrainConfig) -> None:
    """Check that a stored run with the digest of `train` has its settings as well.

    A digest has only 32 bits, so that two settings may have the same one.

    Raises: RecordError
    """
    try:
        known = from_dict(dict(stored.config))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"run {stored.key} has damaged settings in the store: {error!r}"
        raise RecordError(reason) from error
    known = replace(known, seed=train.seed, attack=train.attack)  # no part of the digest
    if known != train:
        changes = describe_changes(asdict(known), train)
        raise RecordError(
            f"run {stored.key} has other settings in the store ({changes}), whose digest is the "
            "same by chance; change any setting of the run, or choose another --store"
        )
