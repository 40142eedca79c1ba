import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="module")
def one_thread():
    """
    Tiny products are slower in two threads, by far on a busy machine, and their sums differ.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """
    A data root of its own: the digits are built there once, CIFAR is never there.
    """
    return Path(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def make_run():
    """
    Makes a run: a tiny model on the digits, with settings of its training by name.
    """
    from aol.config import DataConfig, LossConfig, ModelConfig, TrainConfig
    from orchestrator.spec import Resources, RunSpec

    def make(run_id=0, *, name="AOL-Small", profile="demo", cpus=None, gpus=None, **train):
        settings = {
            "model": ModelConfig(kind="patchwise", width=0.0625),
            "data": DataConfig(name="digits", train_limit=200, test_limit=100, augment=False),
            "loss": LossConfig(offset=2**0.5, temperature=0.25),
            "epochs": 3,
            "batch_size": 50,
            "seed": run_id,
        }
        return RunSpec(
            id=run_id,
            name=name,
            profile=profile,
            resources=Resources(cpus=cpus, gpus=gpus),
            train=TrainConfig(**(settings | train)),
        )

    return make
