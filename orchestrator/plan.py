"""What an invocation would do with each run and why; whether the cluster and disk allow it."""

import math
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from aol.config import TrainConfig, flatten, from_dict
from aol.cost import parameters, training_flop
from orchestrator.spec import Experiment, RunSpec
from orchestrator.store import CHECKPOINTS_KEPT, Checkpoint, Status, StoredRun

GPU_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # CUDA, WSL, ROCm
CPUS_PER_GPU = 2.0
BYTES_PER_PARAMETER = 8  # weight and momentum in float32
CPU_EFFICIENCY = 0.5  # of the matrix product's rate, as measured for AOL-Small


class PlanError(Exception):
    """What was asked for cannot be done on this cluster or disk, a line per reason."""

    exit_code = 2


class Action(StrEnum):
    """What becomes of a run."""

    NEW = "new"
    CONTINUE = "continue"
    CHANGED = "changed"
    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"
    UNSOUND = "unsound"


@dataclass(frozen=True)
class PlannedRun:
    """A run, what will be done with it, and why."""

    run: RunSpec
    action: Action
    reason: str
    epoch: int = 0  # where training (re)starts, in completed epochs
    checkpoints: tuple[Checkpoint, ...] = ()  # to continue from, newest first

    @property
    def todo(self) -> bool:
        """Whether the run trains."""
        return self.action in (Action.NEW, Action.CONTINUE, Action.CHANGED)


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
        machines = f"{len(self.nodes)} machine{'s' if len(self.nodes) != 1 else ''}"
        return f"{machines}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


@dataclass(frozen=True)
class Request:
    """What one run occupies."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Cost:
    """What a run takes: floating-point operations, and bytes of checkpoints on the disk."""

    flop: float
    checkpoint_bytes: int


def make_plan(
    experiment: Experiment, stored: Iterable[StoredRun], rerun: Iterable[int] = ()
) -> list[PlannedRun]:
    """What to do with each run of the experiment, given what the store holds, in its order.

    Runs of the IDs in `rerun` start anew whatever the store holds.
    """
    known = {run.key: run for run in stored}
    anew = set(rerun)
    return [
        PlannedRun(run, Action.NEW, "asked for by --rerun")
        if run.id in anew
        else _planned(run, known)
        for run in experiment.runs
    ]


def _planned(run: RunSpec, known: Mapping[str, StoredRun]) -> PlannedRun:
    stored = known.get(run.key)
    if stored is None:
        return _without_history(run, known.values())
    if stored.alive:
        return PlannedRun(run, Action.RUNNING, f"driver {stored.driver}", stored.epoch)
    if stored.status is Status.DONE and stored.recorded == stored.epochs:
        return PlannedRun(run, Action.DONE, f"all {stored.epochs} epochs", stored.epochs)
    if stored.status in (Status.DIVERGED, Status.UNSOUND):
        return _given_up(run, stored)
    usable = usable_checkpoints(stored)
    was = stored.status if stored.status is not Status.RUNNING else Status.INTERRUPTED
    if usable:
        return PlannedRun(
            run, Action.CONTINUE, f"{was} after epoch {stored.epoch}", usable[0].epoch, usable
        )
    if stored.recorded != stored.epoch:
        missing = stored.epoch - stored.recorded
        return PlannedRun(run, Action.NEW, f"{was}, and {missing} epochs are not recorded")
    if stored.epoch:
        return PlannedRun(run, Action.NEW, f"{was} before its first checkpoint")
    return PlannedRun(run, Action.NEW, str(was) if was is not Status.PENDING else "never started")


def _given_up(run: RunSpec, stored: StoredRun) -> PlannedRun:
    """A run that would end the same way if it were trained again as it is."""
    if stored.status is Status.UNSOUND:
        reason = f"{stored.error}; mend the layer, then --rerun {run.id}"
        return PlannedRun(run, Action.UNSOUND, reason, stored.epoch)
    reason = f"diverged after epoch {stored.epoch}; change its settings or --rerun {run.id}"
    return PlannedRun(run, Action.DIVERGED, reason, stored.epoch)


def _without_history(run: RunSpec, known: Iterable[StoredRun]) -> PlannedRun:
    earlier = [
        other
        for other in known
        if (other.run_id, other.seed, other.profile) == (run.id, run.train.seed, run.profile)
    ]
    if not earlier:
        return PlannedRun(run, Action.NEW, "not in the store")
    return PlannedRun(run, Action.CHANGED, changes(earlier[-1].config, run.train))


def usable_checkpoints(stored: StoredRun) -> tuple[Checkpoint, ...]:
    """The checkpoints up to which every epoch is recorded, newest first."""
    if stored.recorded != stored.epoch:
        return ()
    return tuple(item for item in stored.checkpoints if item.epoch <= stored.epoch)


def changes(before: Mapping[str, object], now: TrainConfig) -> str:
    """The settings that differ, `epochs 10 → 20`."""
    old, new = flatten(from_dict(dict(before))), flatten(now)
    return ", ".join(
        f"{name} {old.get(name)} → {new[name]}" for name in new if old.get(name) != new[name]
    )


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


def request(run: RunSpec, cluster: Cluster, parallel: int) -> Request:
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
    return Request(cpus, gpus)


def check_requests(requests: Iterable[tuple[RunSpec, Request]], cluster: Cluster) -> None:
    """Refuse what would wait for ever. Raises: PlanError with a line per run."""
    reasons = [
        f"run {run.id} asks for {asked.cpus:g} CPUs and {asked.gpus:g} GPUs, and no machine of "
        f"the cluster has them ({cluster}); lower `resources:` or --set resources.gpus=0"
        for run, asked in requests
        if not any(asked.cpus <= node.cpus and asked.gpus <= node.gpus for node in cluster.nodes)
    ]
    if reasons:
        raise PlanError("\n".join(reasons))


def cost(run: RunSpec) -> Cost:
    """What a run takes."""
    return Cost(training_flop(run.train), parameters(run.train.model) * BYTES_PER_PARAMETER)


def costs(runs: Iterable[RunSpec]) -> dict[str, Cost]:
    """What each run takes, by key."""
    return {run.key: cost(run) for run in runs}


def check_disk(costs: Iterable[Cost], storage: Path) -> None:
    """Refuse checkpoints that the disk cannot hold. Raises: PlanError."""
    needed = sum(item.checkpoint_bytes * CHECKPOINTS_KEPT for item in costs)
    existing = next(folder for folder in (storage, *storage.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise PlanError(
            f"{storage}: the checkpoints need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            "free; free some space or choose another place with --storage"
        )


def cpu_rate() -> float:
    """Floating-point operations per second that training reaches here, roughly measured."""
    import torch

    size, rounds = 1024, 6
    matrix = torch.rand(size, size)
    matrix @ matrix
    started = time.perf_counter()
    for _ in range(rounds):
        matrix @ matrix
    return CPU_EFFICIENCY * rounds * 2 * size**3 / (time.perf_counter() - started)


def as_rows(plan: Iterable[PlannedRun]) -> list[dict[str, object]]:
    """The plan as plain values, for tables and JSON."""
    return [
        {
            "id": item.run.id,
            "name": item.run.name,
            "profile": item.run.profile,
            "dataset": item.run.train.data.name,
            "seed": item.run.train.seed,
            "action": str(item.action),
            "from_epoch": item.epoch,
            "epochs": item.run.train.epochs,
            "reason": item.reason,
            "key": item.run.key,
            "settings": asdict(item.run.train),
        }
        for item in plan
    ]
