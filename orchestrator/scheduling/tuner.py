"""Runs as trials of Ray Tune: one fresh Tuner over the jobs of an invocation."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune

from orchestrator.errors import SchedulingError
from orchestrator.planning.resources import ResourceRequest
from orchestrator.scheduling.callback import TrialEvents, trial_key
from orchestrator.scheduling.control import ControlActor, ControlReader
from orchestrator.scheduling.events import Recorder
from orchestrator.scheduling.storage import open_checkpoint
from orchestrator.scheduling.worker import OpenFolder, ReportError, train_run
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run for Ray: what it trains, occupies and continues from."""

    run: RunSpec
    request: ResourceRequest
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class SchedulingOptions:
    """How an invocation trains its jobs."""

    storage: str  # a path or URI for checkpoints
    data_root: Path | None  # None: each machine's own default
    log_folder: Path
    checkpoint_seconds: float
    jobs: int | None = None  # at most so many at once
    retries: int = 3  # per run, when its worker is lost
    fail_fast: bool = False
    warn: Callable[[str], None] = logger.warning  # shows a line to the user


def run_jobs(
    jobs: Sequence[Job], recorders: Sequence[Recorder], options: SchedulingOptions
) -> int | None:
    """Train the jobs in their order on the connected cluster, telling the recorders.

    Returns the signal that stopped it, or None. What became of each run is in the events.

    Raises: SchedulingError if Ray gave up before every run came to an end.
    """
    board = ControlActor({job.run.key: [item.path for item in job.checkpoints] for job in jobs})
    events = TrialEvents(
        [job.run for job in jobs],
        recorders,
        board=board,
        storage=options.storage,
        fail_fast=options.fail_fast,
        warn=options.warn,
    )
    options.log_folder.mkdir(parents=True, exist_ok=True)
    try:
        tuner = _tuner(jobs, options, events, board.name)
    except (OSError, ValueError) as error:
        raise SchedulingError(f"--storage {options.storage}: cannot be used: {error}") from error
    log = options.log_folder / "ray.log"  # Ray prints its errors from a thread of its own
    with log.open("a") as file, redirect_stdout(file), events.stoppable():
        try:
            tuner.fit()
        except Exception as error:  # Ray raises anything, also if its own files cannot be written
            logger.exception("Ray Tune stopped")
            if events.unfinished:
                raise SchedulingError(f"Ray Tune stopped: {error}; see {log.parent}/") from error
        finally:
            events.close()
    return events.signal


def _tuner(
    jobs: Sequence[Job], options: SchedulingOptions, events: TrialEvents, board: str
) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(train_trial, _resources),
        param_space={"job": tune.grid_search([_payload(job, options, board) for job in jobs])},
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


def _resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    job = config["job"]
    bundle = {"CPU": job["cpus"]} | ({"GPU": job["gpus"]} if job["gpus"] else {})
    return tune.PlacementGroupFactory([bundle])


def _payload(job: Job, options: SchedulingOptions, board: str) -> dict[str, Any]:
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
        "board": board,
    }


# On a worker


def train_trial(config: dict[str, Any]) -> None:
    """Train one run in a Ray worker."""
    job = config["job"]
    board = ControlReader(job["board"])
    train_run(job, report=_report, stopping=board.stopping, states=_states(job, board))


def _states(job: Mapping[str, Any], board: ControlReader) -> list[OpenFolder]:
    """What the run can continue from; Ray's newest of this invocation if the board is gone."""
    places = board.checkpoints(job["key"])
    if places is not None:
        return [partial(open_checkpoint, place) for place in places]
    if newest := tune.get_checkpoint():
        return [newest.as_directory]
    return [partial(open_checkpoint, place) for place in job["checkpoints"]]


def _report(result: dict[str, Any], state: Path | None = None) -> None:
    try:
        if state is None:
            tune.report(result)
            return
        checkpoint = tune.Checkpoint.from_directory(state)
        checkpoint.set_metadata({"epoch": result["epoch"]})
        tune.report(result, checkpoint=checkpoint)
    except Exception as error:
        raise ReportError(f"{result['kind']} could not be reported: {error}") from error
