"""What runs take, and whether the cluster and the disk have it."""

import math
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aol.models.flops import parameters, training_flop
from orchestrator.errors import ResourceError
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import CHECKPOINTS_KEPT

GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # CUDA, WSL, ROCm
CPUS_PER_GPU = 2.0
BYTES_PER_PARAMETER = 8  # weight and momentum in float32
CPU_EFFICIENCY = 0.6  # of the matrix product's rate; measured: 0.5 (AOL-Conv) to 0.9 (AOL-Small)
RATE_ROUNDS = 20


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """The machines that runs can be placed on."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """All CPUs."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """All GPUs."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        machines = pluralize(len(self.nodes), "machine")
        return f"{machines}, {pluralize(self.cpus, 'CPU')}, {pluralize(self.gpus, 'GPU')}"


@dataclass(frozen=True)
class ResourceRequest:
    """What one run occupies."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cost:
    """What a run takes: floating-point operations, and bytes of checkpoints on the disk."""

    flop: float
    checkpoint_bytes: int


def local_cluster() -> Cluster:
    """This machine: the CPUs this process may use, and its GPUs."""
    import psutil

    cpus = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None
    return Cluster((Node(float(cpus or psutil.cpu_count() or 1), float(local_gpus())),))


def local_gpus() -> int:
    """How many GPUs torch sees here; without a GPU's device file torch is not even imported."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()


def request_resources(run: RunSpec, cluster: Cluster, parallel: int) -> ResourceRequest:
    """What a run occupies when `parallel` runs are to share the cluster."""
    gpus = run.resources.gpus
    if gpus is None:
        gpus = 1.0 if cluster.gpus else 0.0
    cpus = run.resources.cpus
    if cpus is None and gpus:
        shares = [node.cpus / node.gpus for node in cluster.nodes if node.gpus]
        per_gpu = min(shares, default=1.0)
        cpus = max(1.0, min(CPUS_PER_GPU, per_gpu) * min(gpus, 1.0))
    elif cpus is None:
        largest = max(node.cpus for node in cluster.nodes)
        cpus = float(max(1, math.floor(min(largest, cluster.cpus / parallel))))
    return ResourceRequest(cpus, gpus)


def check_requests(requests: Iterable[tuple[RunSpec, ResourceRequest]], cluster: Cluster) -> None:
    """Refuse what would wait for ever. Raises: ResourceError with a line per kind of request."""
    infeasible: dict[ResourceRequest, list[int]] = {}
    for run, asked in requests:
        if not any(asked.cpus <= node.cpus and asked.gpus <= node.gpus for node in cluster.nodes):
            infeasible.setdefault(asked, []).append(run.id)
    if infeasible:
        raise ResourceError(
            "\n".join(_infeasible(asked, ids, cluster) for asked, ids in infeasible.items())
        )


def _infeasible(asked: ResourceRequest, ids: list[int], cluster: Cluster) -> str:
    most_gpus = max((node.gpus for node in cluster.nodes), default=0)
    too_much = "gpus" if asked.gpus > most_gpus else "cpus"
    named = f"run {ids[0]} asks" if len(ids) == 1 else f"runs {', '.join(map(str, ids))} ask"
    return (
        f"{named} for {pluralize(asked.cpus, 'CPU')} and {pluralize(asked.gpus, 'GPU')}, and no "
        f"machine of the cluster has them ({cluster}); lower `resources.{too_much}` in SPEC or "
        "with --set"
    )


def cost(run: RunSpec) -> Cost:
    """What a run takes."""
    return Cost(training_flop(run.train), parameters(run.train.model) * BYTES_PER_PARAMETER)


def costs(runs: Iterable[RunSpec]) -> dict[str, Cost]:
    """What each run takes, by key."""
    return {run.key: cost(run) for run in runs}


def check_disk(costs: Iterable[Cost], storage: Path) -> None:
    """Refuse checkpoints that the disk cannot hold. Raises: ResourceError."""
    needed = sum(item.checkpoint_bytes * CHECKPOINTS_KEPT for item in costs)
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ResourceError(f"{storage}: {existing} cannot be written to; choose another --results")
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"{storage}: the checkpoints need {_size(needed)} and {_size(free)} are free; free "
            "some space or choose another place with --storage"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def cpu_seconds(flop: float, cluster: Cluster) -> float:
    """How long that takes on the cluster's CPUs, if they are like this machine's."""
    return flop / (cpu_rate() * cluster.cpus / local_cluster().cpus)


def cpu_rate() -> float:
    """Floating-point operations per second that training reaches here, roughly measured."""
    import torch

    from aol.ops.matmul import batched_products

    size = 1024
    matrix = torch.rand(1, size, size)
    seconds = []
    for _ in range(RATE_ROUNDS):  # the best: what else the machine does is not asked for
        started = time.perf_counter()
        batched_products(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return CPU_EFFICIENCY * 2 * size**3 / min(seconds)
