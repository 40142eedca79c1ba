"""Connecting to a cluster, local or existing, and preparing its machines."""

import logging
import platform
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from pyarrow.fs import FileType
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from aol.provenance import PACKED, checkout, versions
from orchestrator.environment import LOCAL
from orchestrator.errors import ResourceError
from orchestrator.planning.resources import Cluster, Node
from orchestrator.scheduling.faults import find_gpu_problem
from orchestrator.scheduling.storage import open_location, probe_file

logger = logging.getLogger(__name__)

NAMESPACE = "aol"
CLIENT_SCHEME = "ray://"
CONNECT_TIMEOUT_S = 5.0
TEMPORARY_PREFIX = "aol-ray-"
TEMPORARY_LENGTH = 20  # characters; longer ones leave too few for the paths of Ray's sockets
SHORT_TEMPORARY = "/tmp"  # noqa: S108 - contains a folder with a unique name
LOCK = "driver.lock"
OBJECT_STORE_BYTES = 100 * 2**20  # no tensors are stored in it
SHIPPED_PACKAGES = ("aol", "orchestrator")  # sent from the driver to the nodes of a cluster
SEE_ALL_GPUS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # those that the raylet sees
INIT_OPTIONS: dict[str, Any] = {
    "log_to_driver": False,
    "configure_logging": False,
    "namespace": NAMESPACE,
}


@dataclass(frozen=True)
class MachineNeeds:
    """The data, the storage with a file of the driver, and the versions that a machine needs."""

    datasets: tuple[str, ...]
    data_root: Path | None
    storage: str
    probe: str
    versions: Mapping[str, str]


@contextmanager
def connect(address: str, local: Cluster) -> Iterator[Cluster]:
    """Connect to a new Ray cluster on this machine, or to the one at `address`.

    Raises: ResourceError if that fails.
    """
    ray_logger = logging.getLogger("ray")
    ray_logger.handlers.clear()  # Ray's messages go to the log file like all others
    ray_logger.propagate = True
    connected = _local_cluster(local) if address == LOCAL else _existing_cluster(address)
    with connected:
        yield Cluster(
            tuple(
                Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in _training_nodes()
            )
        )


def prepare_machines(datasets: Sequence[str], data_root: Path | None, storage: str) -> None:
    """Prepare the datasets on every machine; check its versions, its GPUs and the storage there.

    Raises: ResourceError with a line per problem.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [
        node for node in _training_nodes() if node["NodeID"] != here or node["Resources"].get("GPU")
    ]
    if not nodes:
        return
    with probe_file(storage) as probe:
        needs = MachineNeeds(tuple(datasets), data_root, storage, probe, machine_versions())
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
            for problem in _get_problems(answer)
        ]
    if problems:
        raise ResourceError("\n".join(problems))


@contextmanager
def _local_cluster(local: Cluster) -> Iterator[None]:
    with _temporary_folder() as folder:
        try:
            with _kept_signal_handler():
                ray.init(
                    address=LOCAL,
                    num_cpus=int(local.cpus),
                    num_gpus=int(local.gpus),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",  # see also `environment.prepare_ray`
                    _temp_dir=str(folder),
                    **INIT_OPTIONS,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise ResourceError(f"Ray cannot start on this machine: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _existing_cluster(address: str) -> Iterator[None]:
    if address.startswith(CLIENT_SCHEME):
        raise ResourceError(
            f"--address {address}: Ray Tune does not work through {CLIENT_SCHEME}; run the command "
            "on a machine of the cluster, with --address auto"
        )
    try:
        _check_reachable(address)
        with _kept_signal_handler(), _packed_source() as packages:
            ray.init(address=address, runtime_env={"py_modules": packages}, **INIT_OPTIONS)
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _packed_source() -> Iterator[list[str]]:
    """Yield copies of the packages to ship, which know the commit that they were copied from."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / package for package in SHIPPED_PACKAGES]
        for copy in copies:
            original = Path(__file__).parents[2] / copy.name
            shutil.copytree(original, copy, ignore=shutil.ignore_patterns("__pycache__"))
        packed = Path(folder, PACKED.parent.name, PACKED.name)
        packed.write_text(checkout().as_json(), encoding="utf-8")
        yield [str(copy) for copy in copies]


@contextmanager
def _kept_signal_handler() -> Iterator[None]:
    """Keep Ray from replacing the handler of SIGTERM.

    Ray's own in Python raises SystemExit wherever the program is. Python ignores exceptions in some
    places, such as the lock of `logging` while a process is forked, and the signal is lost. Ray's
    own in C++ calls ours, but aborts the process some seconds after a signal.
    """
    handler = signal.getsignal(signal.SIGTERM)
    utils, name = ray._private.utils, "set_sigterm_handler"  # there from Ray 2.50 to 2.60, at least
    install = getattr(utils, name, None)
    setattr(utils, name, lambda handler: None)
    try:
        yield
    finally:
        setattr(utils, name, install)
        signal.signal(signal.SIGTERM, handler)
        signal.alarm(0)  # by which Ray aborts


def _check_reachable(address: str) -> None:
    """Raise OSError or ValueError at once; Ray itself tries an address for minutes."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Create a temporary folder for Ray, and delete those of killed drivers.

    A running driver holds a lock in its folder. Process IDs would not work, because containers may
    share the folder but not the process IDs.
    """
    usual = tempfile.gettempdir()
    outer = usual if len(usual) <= TEMPORARY_LENGTH else SHORT_TEMPORARY
    for abandoned in Path(outer).glob(f"{TEMPORARY_PREFIX}*/{LOCK}"):
        try:
            with FileLock(abandoned, timeout=0):
                shutil.rmtree(abandoned.parent, ignore_errors=True)
        except (Timeout, OSError):
            continue  # in use, or of another user
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=outer))
    with FileLock(folder / LOCK):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _training_nodes() -> list[dict[str, Any]]:
    """Return the nodes that are alive and have a CPU."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def _get_problems(reference: Any) -> list[str]:
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
