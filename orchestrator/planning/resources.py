"""The resources that runs need, checked against the cluster and the disk."""

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
CPU_EFFICIENCY = 0.6  # of a matrix product's speed; measured 0.5 (AOL-Conv) to 0.9 (AOL-Small)
SPEED_TRIALS = 20


@dataclass(frozen=True)
class Node:
    """One machine of the cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cluster:
    """The machines that can train runs."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        """Return the number of CPUs of all machines."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Return the number of GPUs of all machines."""
        return sum(node.gpus for node in self.nodes)

    def __str__(self) -> str:
        machines = pluralize(len(self.nodes), "machine")
        return f"{machines}, {pluralize(self.cpus, 'CPU')}, {pluralize(self.gpus, 'GPU')}"


@dataclass(frozen=True)
class ResourceRequest:
    """The CPUs and GPUs that one run occupies."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cost:
    """The cost of a run: floating-point operations, and the bytes of one checkpoint."""

    flop: float
    checkpoint_bytes: int


def local_cluster() -> Cluster:
    """Return this machine, with the CPUs that this process may use."""
    import psutil

    cpus = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None
    return Cluster((Node(float(cpus or psutil.cpu_count() or 1), float(local_gpus())),))


def local_gpus() -> int:
    """Return the number of GPUs here; torch is imported only if there is a GPU's device file."""
    if not any(Path(device).exists() for device in GPU_DEVICES):
        return 0
    import torch

    return torch.cuda.device_count()


def request_resources(run: RunSpec, cluster: Cluster, parallel: int) -> ResourceRequest:
    """Return the resources of a run when `parallel` runs share the cluster."""
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
    """Check that some machine can grant each request.

    Raises: ResourceError with a line per distinct request that none can.
    """
    infeasible: dict[ResourceRequest, list[int]] = {}
    for run, request in requests:
        if not any(_fits(request, node) for node in cluster.nodes):
            infeasible.setdefault(request, []).append(run.id)
    if infeasible:
        raise ResourceError(
            "\n".join(
                _describe_infeasible(request, ids, cluster) for request, ids in infeasible.items()
            )
        )


def _fits(request: ResourceRequest, node: Node) -> bool:
    return request.cpus <= node.cpus and request.gpus <= node.gpus


def _describe_infeasible(request: ResourceRequest, ids: list[int], cluster: Cluster) -> str:
    largest = max((node.gpus for node in cluster.nodes), default=0)
    excessive = "gpus" if request.gpus > largest else "cpus"
    runs = f"run {ids[0]} needs" if len(ids) == 1 else f"runs {', '.join(map(str, ids))} need"
    return (
        f"{runs} {pluralize(request.cpus, 'CPU')} and {pluralize(request.gpus, 'GPU')}, but no "
        f"machine of the cluster has them ({cluster}); lower `resources.{excessive}` in SPEC or "
        "with --set"
    )


def cost(run: RunSpec) -> Cost:
    """Return the cost of a run."""
    return Cost(training_flop(run.train), parameters(run.train.model) * BYTES_PER_PARAMETER)


def costs(runs: Iterable[RunSpec]) -> dict[str, Cost]:
    """Return the cost of each run, by key."""
    return {run.key: cost(run) for run in runs}


def check_disk(costs: Iterable[Cost], storage: Path) -> None:
    """Check that the checkpoints fit on the disk. Raises: ResourceError."""
    needed = sum(cost.checkpoint_bytes * CHECKPOINTS_KEPT for cost in costs)
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise ResourceError(
            f"{storage}: {existing} is not a writable folder; choose another --results"
        )
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ResourceError(
            f"{storage}: the checkpoints need {_format_size(needed)} and only "
            f"{_format_size(free)} are free; free some space or choose another place with --storage"
        )


def _format_size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def cpu_seconds(flop: float, cluster: Cluster) -> float:
    """Return the training time on the cluster's CPUs, assuming they are like this machine's."""
    return flop / (cpu_flop_per_s() * cluster.cpus / local_cluster().cpus)


def cpu_flop_per_s() -> float:
    """Return a rough measurement of the floating-point operations per second of training here."""
    import torch

    from aol.ops.matmul import batched_products

    size = 1024
    matrix = torch.rand(1, size, size)
    seconds = []
    for _ in range(SPEED_TRIALS):  # the fastest trial counts: other processes slow trials down
        started = time.perf_counter()
        batched_products(matrix, matrix)
        seconds.append(time.perf_counter() - started)
    return CPU_EFFICIENCY * 2 * size**3 / min(seconds)
