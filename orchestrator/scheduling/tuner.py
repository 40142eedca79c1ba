"""Training jobs as trials of Ray Tune, with a new Tuner for each invocation."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune

from orchestrator.errors import SchedulingError
from orchestrator.logs import LogFile
from orchestrator.planning.resources import ResourceRequest
from orchestrator.scheduling.callback import Ending, TrialEvents, trial_key
from orchestrator.scheduling.control import ControlActor, ControlReader
from orchestrator.scheduling.events import Recorder
from orchestrator.scheduling.placement import Placement, bundle_of, lost_workers_of_any_kind
from orchestrator.scheduling.storage import RunStorage, join_location, open_checkpoint
from orchestrator.scheduling.worker import ReportError, train_run
from orchestrator.signals import StopSignals
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A run with the resources it occupies and the checkpoints it can continue from."""

    run: RunSpec
    request: ResourceRequest
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class SchedulingOptions:
    """The options for all jobs of an invocation."""

    storage: str  # a path or URI for checkpoints
    data_root: Path | None  # None: the default of each machine
    log_folder: Path
    checkpoint_seconds: float
    jobs: int | None = None  # the maximum in parallel
    retries: int = 3  # per run, after the loss of its worker
    fail_fast: bool = False
    stop: StopSignals = field(default_factory=StopSignals)
    warn: Callable[[str], None] = logger.warning  # shows a message to the user


def run_jobs(
    jobs: Sequence[Job], recorders: Sequence[Recorder], options: SchedulingOptions
) -> None:
    """Train the jobs in their order on the connected cluster, and send events to the recorders.

    It returns early after a signal. The events have the result of each run.

    Raises: SchedulingError if Ray stopped before every run ended.
    """
    placement = Placement(options.warn)
    control = ControlActor({job.run.key: [item.path for item in job.checkpoints] for job in jobs})
    events = TrialEvents(
        [job.run for job in jobs],
        recorders,
        control=control,
        fail_fast=options.fail_fast,
        stop=options.stop,
        reasons=placement.reasons,
        warn=options.warn,
    )
    options.log_folder.mkdir(parents=True, exist_ok=True)
    log = options.log_folder / "ray.log"  # Ray prints errors from another thread
    with (
        TemporaryDirectory(prefix="aol-tune-", ignore_cleanup_errors=True) as folder,
        LogFile(log) as file,
        redirect_stdout(file),
    ):
        try:
            with lost_workers_of_any_kind():
                _tuner(jobs, options, events, placement, folder).fit()
        except Exception as error:  # Ray may raise any exception
            logger.exception("Ray Tune stopped")
            if events.unfinished:
                raise SchedulingError(f"Ray Tune stopped: {error}; see {log.parent}/") from error
        finally:
            events.close()


def _tuner(
    jobs: Sequence[Job],
    options: SchedulingOptions,
    events: TrialEvents,
    placement: Placement,
    folder: str,
) -> tune.Tuner:
    """Return a Tuner for the jobs, which keeps its own state, never read again, in `folder`."""
    invocation = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-") + str(os.getpid())
    storage = join_location(options.storage, invocation)
    control = events.control.name
    configs = [_trial_config(job, options, control, storage) for job in jobs]
    return tune.Tuner(
        tune.with_resources(train_trial, _resources),
        param_space={"job": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            num_samples=1,
            max_concurrent_trials=options.jobs,
            reuse_actors=True,
            scheduler=placement,
            trial_name_creator=trial_key,
            trial_dirname_creator=trial_key,
        ),
        run_config=tune.RunConfig(
            name=invocation,
            storage_path=folder,
            callbacks=[events],
            stop=Ending(events),
            failure_config=tune.FailureConfig(max_failures=options.retries),
            verbose=0,
        ),
    )


def _resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    return tune.PlacementGroupFactory([bundle_of(config["job"])])


def _trial_config(
    job: Job, options: SchedulingOptions, control: str, storage: str
) -> dict[str, Any]:
    """Return a job as plain values, which Tune copies and prints."""
    return {
        "key": job.run.key,
        "id": job.run.id,
        "train": asdict(job.run.train),
        "cpus": job.request.cpus,
        "gpus": job.request.gpus,
        "folder": join_location(storage, job.run.key),
        "checkpoints": [item.path for item in job.checkpoints],
        "data_root": str(options.data_root) if options.data_root else None,
        "log": str(options.log_folder / f"{job.run.key}.log"),
        "checkpoint_seconds": options.checkpoint_seconds,
        "control": control,
    }


# In a worker


def train_trial(config: dict[str, Any]) -> None:
    """Train one run in a Ray worker."""
    job = config["job"]
    control = ControlReader(job["control"])
    known = control.checkpoints(job["key"])
    if known is None:  # the control actor is gone
        known = job["checkpoints"]
    written = []  # perhaps one that a lost worker could not report
    with suppress(OSError, ValueError):
        written = RunStorage(job["folder"]).saved_states()
    locations = dict.fromkeys([*written, *known])
    states = [partial(open_checkpoint, location) for location in locations]
    train_run(job, report=_report, stopping=control.stop_requested, states=states)


def _report(result: dict[str, Any]) -> None:
    result = result | {"node": ray.get_runtime_context().get_node_id()}
    try:
        tune.report(result)
    except Exception as error:
        raise ReportError(f"{result['kind']} could not be reported: {error}") from error
