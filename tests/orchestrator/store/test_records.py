import json
from dataclasses import asdict, replace

import pytest
from sqlalchemy import update

from aol.config import AttackConfig
from orchestrator.store import Store
from orchestrator.store.models import RunRow
from orchestrator.store.records import describe_changes, settings_conflict


@pytest.fixture
def forged(location, make_run):
    """
    Return a function that returns a run as stored, with these settings in place of its own.
    """

    def make(settings):
        store = Store(location)
        store.queue([make_run(7)])
        with store.engine.begin() as connection:
            connection.execute(update(RunRow).values(config=settings))
        (found,) = store.runs()
        store.close()
        return found

    return make


def test_equal_settings_have_no_changes(make_run):
    train = make_run(7).train

    assert describe_changes(json.loads(json.dumps(asdict(train))), train) == ""


def test_a_seed_or_an_attack_is_no_other_setting(forged, make_run):
    """
    Neither is part of the digest.
    """
    train = make_run(7).train
    attacked = replace(train, seed=1007, attack=AttackConfig(radius=0.5))

    assert settings_conflict(forged(asdict(train)), attacked) is None
    assert settings_conflict(forged(asdict(attacked)), train) is None


def test_other_settings_with_the_same_digest_are_one_line_with_the_difference(forged, make_run):
    run = make_run(7)
    other = replace(run.train, epochs=10, batch_size=20)

    assert settings_conflict(forged(asdict(other)), run.train) == (
        f"run {run.key} has other settings in the store (epochs 10 → 3, batch_size 20 → 50): they "
        "were edited, or the digests are equal by chance; change any setting of the run, or choose "
        "another --store"
    )


@pytest.mark.parametrize("settings", [{}, {"model": 1}])
def test_damaged_settings_are_one_line(forged, make_run, settings):
    line = settings_conflict(forged(settings), make_run(7).train)

    assert line.startswith(f"run {make_run(7).key} has damaged settings in the store: ")
    assert "\n" not in line
