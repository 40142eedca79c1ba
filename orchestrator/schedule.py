"""Ray Tune trains the runs. The only file that imports Ray.

Ray's own state is disposable: every invocation makes a fresh Tuner for what is unfinished, and
each run continues from its last checkpoint in the store. The driver turns Tune's callbacks into
events for the recorders; a worker only trains, reports and saves.
"""

import base64
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from orchestrator.environment import LOCAL
from orchestrator.events import (
    EpochDone,
    Event,
    Finished,
    Placed,
    Recorder,
    Saved,
    Started,
    Tick,
)
from orchestrator.plan import Cluster, Node, PlanError, Request
from orchestrator.spec import RunSpec
from orchestrator.store import Checkpoint, Status
from orchestrator.worker import train_run

logger = logging.getLogger(__name__)

FLAG = "aol-stop"
NAMESPACE = "aol"
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
    data_root: Path
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
        if address == LOCAL:
            folder = tempfile.mkdtemp(prefix="aol-ray-")
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
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise PlanError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield _nodes()
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _nodes() -> Cluster:
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Cluster(tuple(Node(item.get("CPU", 0.0), item.get("GPU", 0.0)) for item in found))


def run_all(jobs: Sequence[Job], recorders: Sequence[Recorder], options: Options) -> int | None:
    """Train the jobs in their order on the connected cluster, telling the recorders.

    Returns the signal that stopped it, or None. What became of each run is in the events.
    """
    events = TrialEvents(jobs, recorders, fail_fast=options.fail_fast)
    options.log_folder.mkdir(parents=True, exist_ok=True)
    tuner = tune.Tuner(
        tune.with_resources(train_trial, _resources),
        param_space={"job": tune.grid_search([_payload(job, options) for job in jobs])},
        tune_config=tune.TuneConfig(
            num_samples=1,
            max_concurrent_trials=options.jobs,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
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


def _trial_name(trial: Trial) -> str:
    return str(trial.config["job"]["key"])


def _payload(job: Job, options: Options) -> dict[str, Any]:
    """A job as plain values: Tune copies and prints them."""
    return {
        "key": job.run.key,
        "id": job.run.id,
        "train": asdict(job.run.train),
        "cpus": job.request.cpus,
        "gpus": job.request.gpus,
        "checkpoints": [item.path for item in job.checkpoints],
        "data_root": str(options.data_root),
        "log": str(options.log_folder / f"{job.run.key}.log"),
        "checkpoint_seconds": options.checkpoint_seconds,
    }


def discard(folder: str) -> None:
    """Remove a folder of the storage, a path or URI; one that is gone already is fine."""
    target = tune.Checkpoint(folder)
    try:
        _filesystem(target).delete_dir(target.path)
    except OSError:
        logger.info("%s is gone already", folder)


# On the driver


class TrialEvents(tune.Callback):
    """Turns Tune's callbacks into events. A recorder's failure is logged and stops nothing."""

    def __init__(
        self, jobs: Sequence[Job], recorders: Sequence[Recorder], *, fail_fast: bool = False
    ) -> None:
        self.runs = {job.run.key: job.run for job in jobs}
        self.recorders, self.fail_fast = list(recorders), fail_fast
        self.unfinished = dict(self.runs)
        self.active: dict[str, RunSpec] = {}
        self.stopping = False
        self.signal: int | None = None
        self._flag: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks to a file that is never read again."""
        return {}

    def tell(self, event: Event) -> None:
        """Hand an event to every recorder."""
        for recorder in self.recorders:
            try:
                recorder(event)
            except Exception:
                logger.exception("%s failed on %s", type(recorder).__name__, type(event).__name__)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside the block the first SIGINT or SIGTERM saves and stops, the second just stops."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Say that runs without an end were interrupted."""
        for run in list(self.unfinished.values()):
            self._finish(Finished(run, Status.INTERRUPTED))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune's own way to stop without waiting
            return
        self.signal = number
        print(
            "Stopping: each run saves after its current epoch. Interrupt again to stop at once.",
            file=sys.stderr,
        )
        self.stopping = True

    def _finish(self, event: Finished) -> None:
        self.active.pop(event.run.key, None)
        if self.unfinished.pop(event.run.key, None):
            self.tell(event)

    # Tune's hooks

    def setup(self, *_: Any, **__: Any) -> None:
        """Start the flag that tells workers to stop."""
        self._flag = StopFlag.options(name=FLAG, num_cpus=0, lifetime=None).remote()  # type: ignore[attr-defined]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial got its resources."""
        run = self.runs[_trial_name(trial)]
        self.active[run.key] = run
        self.tell(Started(run))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """A worker reported."""
        run = self.runs[_trial_name(trial)]
        match result.get("kind"):
            case "placed":
                self.tell(Placed(run, result["host"], result["device"], result["epoch"]))
            case "epoch":
                self.tell(EpochDone(run, result["epoch"], result["values"]))
            case "done":
                margins = base64.b64decode(result["margins"])
                self._finish(Finished(run, Status.DONE, margins=margins))
            case "failed" | "diverged" as status:
                self._finish(Finished(run, Status(status), error=result["error"]))
                self.stopping = self.stopping or self.fail_fast

    def on_checkpoint(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        checkpoint: tune.Checkpoint,
        **_: Any,
    ) -> None:
        """A checkpoint is in the storage."""
        try:
            epoch = int(checkpoint.get_metadata()["epoch"])
        except Exception:
            logger.exception("checkpoint %s cannot be read back", checkpoint)
            return
        path = _location(checkpoint)
        self.tell(Saved(self.runs[_trial_name(trial)], Checkpoint(epoch, path)))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A worker was lost more often than it may be."""
        cause = trial.get_error() or "its worker was lost"
        run = self.runs[_trial_name(trial)]
        self._finish(Finished(run, Status.FAILED, error=f"{type(cause).__name__}: {cause}"))
        self.stopping = self.stopping or self.fail_fast

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Called about ten times a second."""
        self.tell(Tick(tuple(self.active.values())))
        if self.stopping and self._flag is not None:
            self._flag.raise_.remote()
            self._flag = None
        if self.stopping and not any(trial.status == Trial.RUNNING for trial in trials):
            os.kill(os.getpid(), signal.SIGUSR1)


def _filesystem(checkpoint: tune.Checkpoint) -> Any:
    return checkpoint.filesystem


def _location(checkpoint: tune.Checkpoint) -> str:
    """A path or URI from which the checkpoint can be opened again."""
    scheme = _filesystem(checkpoint).type_name
    return checkpoint.path if scheme == "local" else f"{scheme}://{checkpoint.path}"


@ray.remote
class StopFlag:
    """Whether workers shall save and stop after their current epoch."""

    def __init__(self) -> None:
        self.raised = False

    def raise_(self) -> None:
        """Ask the workers to stop."""
        self.raised = True

    def is_raised(self) -> bool:
        """Whether they shall stop."""
        return self.raised


# On a worker


def train_trial(config: dict[str, Any]) -> None:
    """Train one run in a Ray worker."""
    flag = ray.get_actor(FLAG)

    def report(result: dict[str, Any], state: Path | None = None) -> None:
        if state is None:
            tune.report(result)
            return
        checkpoint = tune.Checkpoint.from_directory(state)
        checkpoint.set_metadata({"epoch": result["epoch"]})
        tune.report(result, checkpoint=checkpoint)

    job = config["job"]
    mine = tune.get_checkpoint()  # after a retry
    earlier = [mine] if mine else []
    earlier += [tune.Checkpoint(path) for path in job["checkpoints"]]
    train_run(
        job,
        report=report,
        stopping=lambda: bool(ray.get(flag.is_raised.remote())),
        states=[checkpoint.as_directory for checkpoint in earlier],
    )
