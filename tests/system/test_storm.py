"""
A short storm of kills, with another seed each time; `make test-faults` is a long one.
"""

import random
import secrets

import pytest

from tests.support.shell import TINY, Shell
from tests.support.storm import Storm, differences

pytestmark = pytest.mark.slow


def test_nothing_is_lost_or_changed_by_random_kills(tmp_path, data_root):
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # shown if the test fails
    yaml = TINY.replace("epochs: 3", "epochs: 40").replace("seconds: 0.2", "seconds: 0.1")
    arguments = ("run", "experiments.yaml", "--profile", "demo")
    calm, storm = (
        Storm(shell.folder, arguments, shell.environment, random.Random(seed))
        for shell in (Shell(tmp_path / name, data_root, yaml) for name in ("calm", "storm"))
    )
    assert calm.calm() == 0
    storm.rage(6)

    assert storm.calm() == 0
    assert len(calm.metrics()) > 2 * 40
    assert not any(differences(storm, calm).values())
