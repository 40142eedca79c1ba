"""Checking and preparing every machine of a cluster before a run starts."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pyarrow.fs import FileType
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aol.provenance import versions
from orchestrator.errors import ResourceError
from orchestrator.scheduling.faults import find_gpu_problem
from orchestrator.scheduling.storage import open_location, probe_file
from orchestrator.signals import POLL_S, StopSignals

if TYPE_CHECKING:
    from orchestrator.scheduling.tuner import SchedulingOptions

SEE_ALL_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # those that the raylet sees


@dataclass(frozen=True)
class MachineNeeds:
    """The data, the storage with a file of the driver, and the versions that a machine needs."""

    datasets: tuple[str, ...]
    data_root: Path | None
    storage: str
    probe: str
    versions: Mapping[str, str]


def training_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive and have a CPU."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def prepare_machines(datasets: Sequence[str], options: "SchedulingOptions") -> None:
    """Prepare the datasets on every machine; check its versions, its GPUs and the storage there.

    Raises: ResourceError with a line per problem; Stopped at a signal.
    """
    storage, stop = options.storage, options.stop
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node for node in training_nodes() if node["NodeID"] != here or node["Resources"].get("GPU")
    ]
    if not nodes:
        return
    with probe_file(storage) as probe:
        versions_here = machine_versions()
        needs = MachineNeeds(tuple(datasets), options.data_root, storage, probe, versions_here)
        answers = [
            _prepare.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                runtime_env={"env_vars": SEE_ALL_GPUS},
            ).remote(needs, node["Resources"].get("GPU", 0.0))
            for node in nodes
        ]
        problems = [
            f"machine {node['NodeManagerHostname']}: {problem}"
            for node, answer in zip(nodes, answers, strict=True)
            for problem in _get_problems(answer, stop)
        ]
    if problems:
        raise ResourceError("\n".join(problems))


def _get_problems(reference: Any, stop: StopSignals) -> list[str]:
    while not ray.wait([reference], timeout=POLL_S)[0]:
        stop.check()
    try:
        problems: list[str] = ray.get(reference)
    except ray.exceptions.RayError as error:
        return [str(error).strip().splitlines()[-1]]
    return problems


# On another machine


@ray.remote(num_cpus=0)
def _prepare(needs: MachineNeeds, gpus: float) -> list[str]:
    if problems := find_other_versions(needs.versions):
        return problems  # they explain all others
    problem = find_gpu_problem(gpus) if gpus else None
    others = check_machine(needs.datasets, needs.data_root, needs.storage, needs.probe)
    return [problem, *others] if problem else others


def machine_versions() -> dict[str, str]:
    """Return the versions that all machines of a cluster must share."""
    return {"python": platform.python_version()} | versions(("torch", "ray"))


def find_other_versions(expected: Mapping[str, str]) -> list[str]:
    """Return a line per version here that is not the driver's."""
    here = machine_versions()
    return [
        f"has {name} {here[name]}, the driver {version}; install the driver's version, such as "
        "from requirements.lock"
        if name in here
        else f"has no {name}, the driver {version}; install it, such as from requirements.lock"
        for name, version in expected.items()
        if here.get(name) != version
    ]


def check_machine(
    datasets: Sequence[str], data_root: Path | None, storage: str, probe: str
) -> list[str]:
    """Prepare the datasets; return what keeps this machine from training."""
    from aol.data.datasets import default_root, prepare
    from aol.errors import DataError

    problems = []
    try:
        system, _ = open_location(storage)
        reason = "" if system.get_file_info(probe).type == FileType.File else "another folder"
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason:
        problems.append(
            f"cannot access the driver's storage at {storage} ({reason}); pass a shared "
            "folder or a URI with --storage"
        )
    for name in datasets:
        try:
            prepare(name, data_root or default_root())
        except DataError as error:
            problems.append(str(error))
    return problems
