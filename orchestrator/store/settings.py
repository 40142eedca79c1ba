"""Comparing the settings of stored runs with those of an experiment."""

from collections.abc import Mapping
from dataclasses import asdict, replace

from aol.config import TrainConfig, flatten, from_dict
from orchestrator.store.records import StoredRun


def describe_changes(before: Mapping[str, object], now: TrainConfig) -> str:
    """Return the settings that differ, such as `epochs 10 → 20`."""
    old, new = flatten(from_dict(dict(before))), flatten(now)
    return ", ".join(
        f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]
    )


def settings_conflict(stored: StoredRun, train: TrainConfig) -> str | None:
    """Return why a stored run with the digest of `train` has other settings, or None if it has not.

    A digest has only 32 bits, so that two settings may have the same one.
    """
    try:
        known = from_dict(dict(stored.config))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        return f"run {stored.key} has damaged settings in the store: {error!r}"
    known = replace(known, seed=train.seed, attack=train.attack)  # no part of the digest
    if known == train:
        return None
    changes = describe_changes(asdict(known), train)
    return (
        f"run {stored.key} has other settings in the store ({changes}): they were edited, or the "
        "digests are equal by chance; change any setting of the run, or choose another --store"
    )
