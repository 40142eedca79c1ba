"""Connecting to a cluster, local or existing."""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from filelock import FileLock, Timeout

from aol.provenance import PACKED, checkout
from orchestrator.environment import LOCAL
from orchestrator.errors import ResourceError, SchedulingError
from orchestrator.planning.resources import Cluster, Node
from orchestrator.scheduling.machines import training_nodes
from orchestrator.signals import in_main_thread

logger = logging.getLogger(__name__)

NAMESPACE = "aol"
CLIENT_SCHEME = "ray://"
CONNECT_TIMEOUT_S = 5.0
TEMPORARY_PREFIX = "aol-ray-"
TEMPORARY_LENGTH = 20  # characters; longer ones leave too few for the paths of Ray's sockets
SHORT_TEMPORARY = "/tmp"  # noqa: S108 - contains a folder with a unique name
LOCK = "driver.lock"
RAY_FOLDER = "r"  # in the temporary folder; Ray makes it accessible for every user
TOKEN_VERSION = "2.52"  # noqa: S105 - the first version of Ray with token authentication
STDERR = 2  # file descriptor
OBJECT_STORE_BYTES = 100 * 2**20  # no tensors are stored in it
SHIPPED_PACKAGES = ("aol", "orchestrator")  # sent from the driver to the nodes of a cluster
INIT_OPTIONS: dict[str, Any] = {
    "log_to_driver": False,
    "configure_logging": False,
    "namespace": NAMESPACE,
}


@contextmanager
def connect(address: str, local: Cluster) -> Iterator[Cluster]:
    """Connect to a new Ray cluster on this machine, or to the one at `address`.

    Raises: ResourceError if that fails, SchedulingError if there is no room for temporary files.
    """
    ray_logger = logging.getLogger("ray")
    ray_logger.handlers.clear()  # Ray's messages go to the log file like all others
    ray_logger.propagate = True
    connected = _local_cluster(local) if address == LOCAL else _existing_cluster(address)
    with connected:
        yield Cluster(
            tuple(
                Node(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
                for node in training_nodes()
            )
        )


@contextmanager
def _local_cluster(local: Cluster) -> Iterator[None]:
    with _temporary_folder() as folder, _token_authentication():
        try:
            with _ray_start():
                ray.init(
                    address=LOCAL,
                    num_cpus=int(local.cpus),
                    num_gpus=int(local.gpus),
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",  # see also `environment.prepare_ray`
                    _temp_dir=str(folder / RAY_FOLDER),
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
        with _ray_start(), _packed_source() as packages:
            ray.init(address=address, runtime_env={"py_modules": packages}, **INIT_OPTIONS)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if "AuthenticationError" in f"{error!r} {error.__cause__}":
            raise ResourceError(
                f"the Ray cluster at {address} requires its token; set RAY_AUTH_MODE=token, and "
                "RAY_AUTH_TOKEN_PATH to a file that contains it"
            ) from error
        raise ResourceError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _packed_source() -> Iterator[list[str]]:
    """Yield copies of the packages to ship, each with the commit that it was copied from."""
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / package for package in SHIPPED_PACKAGES]
        for copy in copies:
            original = Path(__file__).parents[2] / copy.name
            shutil.copytree(original, copy, ignore=shutil.ignore_patterns("__pycache__"))
        packed = Path(folder, PACKED.parent.name, PACKED.name)
        packed.write_text(checkout().as_json(), encoding="utf-8")
        yield [str(copy) for copy in copies]


@contextmanager
def _token_authentication() -> Iterator[None]:
    """Protect a cluster started in the block by a new token, which its processes inherit.

    Without one, every user of the machine can run code in the workers. Ray caches both variables.
    """
    raylet: Any = ray._raylet
    if not hasattr(raylet, "AuthenticationTokenLoader"):
        raise ResourceError(
            f"Ray {ray.__version__} would let other users of this machine in, because it has no "
            f"token authentication; install ray[tune]>={TOKEN_VERSION}"
        )

    def reload() -> None:
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()

    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ[name] for name in token if name in os.environ}
    os.environ.update(token)
    reload()
    try:
        yield
    finally:
        for name in token:
            os.environ.pop(name, None)
        os.environ.update(before)
        reload()


@contextmanager
def _ray_start() -> Iterator[None]:
    """Keep Ray, which starts in the block, from changing what a signal does.

    One to the process group, as from a terminal, must not reach Ray's processes, which are needed
    to save. Ray's handler of SIGTERM in Python raises SystemExit wherever the program is. Its
    handler in C++ calls ours, but prints a trace, and aborts the process some seconds later.
    """
    services, utils = ray._private.services, ray._private.utils  # alike from Ray 2.52 to 2.60
    in_session = partial(services.ConsolePopen, start_new_session=True)
    handler = signal.getsignal(signal.SIGTERM)
    with (
        _replaced(services, "ConsolePopen", in_session),
        _replaced(utils, "set_sigterm_handler", lambda handler: None),
        _stderr_to_log(),
    ):
        try:
            yield
        finally:
            if in_main_thread():
                signal.signal(signal.SIGTERM, handler)
            signal.alarm(0)


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


@contextmanager
def _stderr_to_log() -> Iterator[None]:
    """Log what libraries in C++ print to the standard error in the block."""
    terminal = os.dup(STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), STDERR)
        try:
            yield
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                logger.info("%s", line)


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
    usable = usual.isascii() and len(usual) <= TEMPORARY_LENGTH  # Ray decodes the path as ASCII
    outer = usual if usable else SHORT_TEMPORARY
    for abandoned in Path(outer).glob(f"{TEMPORARY_PREFIX}*/{LOCK}"):
        try:
            with FileLock(abandoned, timeout=0):
                shutil.rmtree(abandoned.parent, ignore_errors=True)
        except (Timeout, OSError):
            continue  # in use, or of another user
    with ExitStack() as stack:
        try:
            folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=outer))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(FileLock(folder / LOCK))
        except OSError as error:
            raise SchedulingError(
                f"Ray cannot start on this machine: {outer}: {error.strerror}; free some space "
                "there, or set TMPDIR to another folder"
            ) from error
        yield folder
