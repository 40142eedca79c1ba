"""The cluster: one of our own, or one that runs already; whether its machines are ready."""

import logging
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from pyarrow.fs import FileType
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.environment import LOCAL
from orchestrator.errors import ResourceError
from orchestrator.planning.resources import Cluster, Node
from orchestrator.scheduling.storage import _marker, open_location

logger = logging.getLogger(__name__)

NAMESPACE = "aol"
CLIENT = "ray://"
CONNECT_S = 5.0
TEMPORARY = "aol-ray-"
LONGEST_TEMPORARY = 20  # characters: the paths of Ray's sockets lie below and end at 107
SHORT_TEMPORARY = "/tmp"  # noqa: S108 - our folder in it is made with a name of its own
LOCK = "driver.lock"
OBJECT_STORE_BYTES = 100 * 2**20  # no tensors travel through it
SHIPPED = ("aol", "orchestrator")  # packages that nodes of a cluster get from the driver


@contextmanager
def connect(address: str, local: Cluster) -> Iterator[Cluster]:
    """A Ray cluster: one of our own on this machine, or the one at `address`.

    Raises: ResourceError if it cannot be reached.
    """
    ray_logger = logging.getLogger("ray")
    ray_logger.handlers.clear()  # what Ray says goes where everything goes: to the log file
    ray_logger.propagate = True
    connected = _own(local) if address == LOCAL else _joined(address)
    terminated = signal.getsignal(signal.SIGTERM)
    with connected:
        signal.signal(signal.SIGTERM, terminated)  # Ray has put its own there
        yield Cluster(
            tuple(
                Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in _alive()
            )
        )


@contextmanager
def _own(local: Cluster) -> Iterator[None]:
    with _temporary_folder() as folder:
        try:
            ray.init(
                address=LOCAL,
                num_cpus=int(local.cpus),
                num_gpus=int(local.gpus),
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",  # see also `environment.prepare_ray`
                _temp_dir=str(folder),
                **_quietly(),
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise ResourceError(f"Ray does not start on this machine: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _joined(address: str) -> Iterator[None]:
    if address.startswith(CLIENT):
        raise ResourceError(
            f"--address {address}: Ray Tune does not work through {CLIENT}; type `run` on a "
            "machine of the cluster, with --address auto"
        )
    project = Path(__file__).parents[2]
    shipped = [str(project / package) for package in SHIPPED]
    try:
        _check_reachable(address)
        ray.init(address=address, runtime_env={"py_modules": shipped}, **_quietly())
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _quietly() -> dict[str, Any]:
    return {"log_to_driver": False, "configure_logging": False, "namespace": NAMESPACE}


def _check_reachable(address: str) -> None:
    """Ray tries an address for minutes before it gives up. Raises: OSError, ValueError."""
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for Ray that is gone afterwards; those of killed drivers go first.

    A driver holds a lock in its own. Process IDs would not tell: containers share folders and
    not process IDs.
    """
    usual = tempfile.gettempdir()
    outer = usual if len(usual) <= LONGEST_TEMPORARY else SHORT_TEMPORARY
    for abandoned in Path(outer).glob(f"{TEMPORARY}*/{LOCK}"):
        try:
            with FileLock(abandoned, timeout=0):
                shutil.rmtree(abandoned.parent, ignore_errors=True)
        except (Timeout, OSError):
            continue  # in use, or someone else's
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=outer))
    with FileLock(folder / LOCK):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _alive() -> list[dict[str, Any]]:
    """The machines that can train."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]


def prepare_machines(datasets: Sequence[str], data_root: Path | None, storage: str) -> None:
    """Have every other machine of the cluster prepare its images and look into the storage.

    Raises: ResourceError with a line per machine that cannot.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in _alive() if node["NodeID"] != here]
    if not others:
        return
    with _marker(storage) as marker:
        asked = [
            _prepare.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(list(datasets), data_root, storage, marker)
            for node in others
        ]
        problems = [
            f"machine {node['NodeManagerHostname']}: {problem}"
            for node, answer in zip(others, asked, strict=True)
            for problem in _answer(answer)
        ]
    if problems:
        raise ResourceError("\n".join(problems))


def _answer(reference: Any) -> list[str]:
    try:
        problems: list[str] = ray.get(reference)
    except ray.exceptions.RayError as error:
        return [str(error).strip().splitlines()[-1]]
    return problems


# On another machine


@ray.remote(num_cpus=0)
def _prepare(datasets: list[str], data_root: Path | None, storage: str, marker: str) -> list[str]:
    return problems_here(datasets, data_root, storage, marker)


def problems_here(
    datasets: Sequence[str], data_root: Path | None, storage: str, marker: str
) -> list[str]:
    """What keeps this machine from training: images it cannot get, a storage it does not see."""
    from aol.data.datasets import default_root, prepare
    from aol.errors import DataError

    problems = []
    try:
        system, _ = open_location(storage)
        reason = "" if system.get_file_info(marker).type == FileType.File else "another folder"
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason:
        problems.append(
            f"does not see the driver's storage at {storage} ({reason}); name a shared folder or "
            "a URI with --storage"
        )
    for name in datasets:
        try:
            prepare(name, data_root or default_root())
        except DataError as error:
            problems.append(str(error))
    return problems
