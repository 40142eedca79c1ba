"""
Workers on machines that fail, in place of `tuner.train_trial`. The GPUs of the tests exist in name
only, so that training on one fails as on a machine without a driver.
"""

import time
from unittest.mock import patch

import ray

from orchestrator.scheduling.tuner import train_trial

CUDA_MEMORY = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.00 GiB of "
    "which 1.50 GiB is free."
)


def train_where_healthy(config):
    """
    Train on the CPU of a healthy node, and on the GPU of a sick one.
    """
    if is_healthy():
        config = {"job": config["job"] | {"gpus": 0.0}}
    train_trial(config)


def train_where_memory_is_free(config):
    """
    Train on the CPU, but find the GPU of a sick node full before training starts.
    """
    import torch

    if is_healthy():
        return train_where_healthy(config)
    with patch("aol.training.trainer.Trainer", side_effect=torch.OutOfMemoryError(CUDA_MEMORY)):
        return train_trial(config)


def is_healthy():
    return ray.get_runtime_context().get_node_labels()["state"] == "healthy"


def train_if_alone(config):
    """
    Run out of memory unless the worker has both CPUs of its node.
    """
    if ray.get_runtime_context().get_assigned_resources()["CPU"] < 2:
        return train_without_memory(config)
    return train_trial(config)


def train_without_memory(config):
    import torch

    error = torch.OutOfMemoryError(CUDA_MEMORY)
    with patch("aol.training.trainer.Trainer.epochs", side_effect=error):
        train_trial(config)


def train_until_killed(config):
    """
    Take memory until Ray kills this worker.
    """
    held = []
    while sum(map(len, held)) < 8 * 2**30:
        held.append(bytearray(100 * 2**20))
        held[-1][::4096] = b"x" * len(held[-1][::4096])
        time.sleep(0.2)
