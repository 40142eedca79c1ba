import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """
    A data root of its own: the digits are built there once, CIFAR is never there.
    """
    return Path(tmp_path_factory.mktemp("data"))
