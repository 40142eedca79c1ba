"""Ray Tune trains the runs. This package alone imports Ray.

Ray's own state is disposable: every invocation makes a fresh Tuner for what is unfinished, and
each run continues from its last checkpoint in the store. The driver turns Tune's callbacks into
events for the recorders; a worker only trains, reports and saves.
"""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune

from orchestrator.environment import LOCAL
from orchestrator.events import Recorder
from orchestrator.plan import Cluster, Node, PlanError, Request
from orchestrator.schedule.trial_events import TrialEvents, filesystem, trial_key
from orchestrator.spec import RunSpec
from orchestrator.store import Checkpoint
from orchestrator.worker import train_run

logger = logging.getLogger(__name__)

NAMESPACE = "aol"
CONNECT_S = 5.0
TEMPORARY = "aol-ray-"  # and the driver's process ID
OBJECT_STORE_BYTES = 100 * 2**20  # no tensors travel through it
SHIPPED = ("aol", "orchestrator")  # packages that nodes of a cluster get from the driver


@dataclass(frozen=True)
class Job:
    """One run for Ray: what it trains, occupies and continues from."""

    run: RunSpec
    request: Request
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class Options:
    """How an invocation trains its jobs."""

    storage: str  # a path or URI for checkpoints
    data_root: Path | None  # None: each machine's own default
    log_folder: Path
    checkpoint_seconds: float
    jobs: int | None = None  # at most so many at once
    retries: int = 3  # per run, when its worker is lost
    fail_fast: bool = False


@contextmanager
def cluster(address: str, local: Cluster) -> Iterator[Cluster]:
    """A Ray cluster: one of our own on this machine, or the one at `address`.

    Raises: PlanError if it cannot be reached.
    """
    ray_logger = logging.getLogger("ray")
    ray_logger.handlers.clear()  # what Ray says goes where everything goes: to the log file
    ray_logger.propagate = True
    common: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,  # the invocation has a log file
        "namespace": NAMESPACE,
    }
    folder = None
    try:
        _check_reachable(address)
        if address == LOCAL:
            _sweep_abandoned()
            folder = tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-")
            ray.init(
                address=LOCAL,
                num_cpus=int(local.cpus),
                num_gpus=int(local.gpus),
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",  # see also `environment.prepare_ray`
                _temp_dir=folder,
                **common,
            )
        else:
            project = Path(__file__).parent.parent
            shipped = [str(project / package) for package in SHIPPED]
            common.pop("include_dashboard")
            ray.init(address=address, runtime_env={"py_modules": shipped}, **common)
    except (OSError, RuntimeError, ValueError) as error:
        raise PlanError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield _nodes()
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Ray tries an address for minutes before it gives up. Raises: OSError, ValueError."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _sweep_abandoned() -> None:
    """Remove the temporary folders of drivers that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        process = folder.name.removeprefix(TEMPORARY).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(folder, ignore_errors=True)


def _nodes() -> Cluster:
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(tuple(Node(item.get("CPU", 0.0), item.get("GPU", 0.0)) for item in found))


def run_all(jobs: Sequence[Job], recorders: Sequence[Recorder], options: Options) -> int | None:
    """Train the jobs in their order on the connected cluster, telling the recorders.

    Returns the signal that stopped it, or None. What became of each run is in the events.
    """
    events = TrialEvents([job.run for job in jobs], recorders, fail_fast=options.fail_fast)
    options.log_folder.mkdir(parents=True, exist_ok=True)
    tuner = tune.Tuner(
        tune.with_resources(train_trial, _resources),
        param_space={
            "job": tune.grid_search([_payload(job, options, events.flag_name) for job in jobs])
        },
        tune_config=tune.TuneConfig(
            num_samples=1,
            max_concurrent_trials=options.jobs,
            reuse_actors=True,
            trial_name_creator=trial_key,
            trial_dirname_creator=trial_key,
        ),
        run_config=tune.RunConfig(
            name=datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + str(os.getpid()),
            storage_path=options.storage,
            callbacks=[events],
            failure_config=tune.FailureConfig(max_failures=options.retries),
            verbose=0,
        ),
    )
    log = options.log_folder / "ray.log"  # Ray prints its errors from a thread of its own
    with log.open("a") as file, redirect_stdout(file), events.stoppable():
        try:
            tuner.fit()
        finally:
            events.close()
    return events.signal


def _resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    job = config["job"]
    bundle = {"CPU": job["cpus"]} | ({"GPU": job["gpus"]} if job["gpus"] else {})
    return tune.PlacementGroupFactory([bundle])


def _payload(job: Job, options: Options, flag: str) -> dict[str, Any]:
    """A job as plain values: Tune copies and prints them."""
    return {
        "key": job.run.key,
        "id": job.run.id,
        "train": asdict(job.run.train),
        "cpus": job.request.cpus,
        "gpus": job.request.gpus,
        "checkpoints": [item.path for item in job.checkpoints],
        "data_root": str(options.data_root) if options.data_root else None,
        "log": str(options.log_folder / f"{job.run.key}.log"),
        "checkpoint_seconds": options.checkpoint_seconds,
        "flag": flag,
    }


def discard(folder: str) -> None:
    """Remove a folder of the storage, a path or URI; one that is gone already is fine."""
    target = tune.Checkpoint(folder)
    try:
        filesystem(target).delete_dir(target.path)
    except OSError:
        logger.info("%s is gone already", folder)


# On a worker


def train_trial(config: dict[str, Any]) -> None:
    """Train one run in a Ray worker."""
    job = config["job"]
    flag = ray.get_actor(job["flag"])

    def report(result: dict[str, Any], state: Path | None = None) -> None:
        if state is None:
            tune.report(result)
            return
        checkpoint = tune.Checkpoint.from_directory(state)
        checkpoint.set_metadata({"epoch": result["epoch"]})
        tune.report(result, checkpoint=checkpoint)

    mine = tune.get_checkpoint()  # after a retry
    earlier = [mine] if mine else []
    earlier += [tune.Checkpoint(path) for path in job["checkpoints"]]
    train_run(
        job,
        report=report,
        stopping=lambda: _is_raised(flag),
        states=[checkpoint.as_directory for checkpoint in earlier],
    )


def _is_raised(flag: Any) -> bool:
    try:
        return bool(ray.get(flag.is_raised.remote()))
    except ray.exceptions.RayError:
        return False  # no flag, no stop: the run is worth more
