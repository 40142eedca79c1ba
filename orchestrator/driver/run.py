"""One invocation of `run`: plan, train, record, write the tables. Prints nothing."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aol.provenance import UNKNOWN, UNKNOWN_COMMIT
from orchestrator.analysis.report import make_report
from orchestrator.driver.heartbeat import Heartbeat
from orchestrator.driver.observer import Observer
from orchestrator.driver.session import RunOptions, Session
from orchestrator.environment import LOCAL, prepare
from orchestrator.formatting import pluralize
from orchestrator.masking import mask_secrets
from orchestrator.planning import resources
from orchestrator.planning.plan import PlannedRun
from orchestrator.reporting.render import write_report
from orchestrator.scheduling.events import Recorder
from orchestrator.scheduling.storage import CheckpointStorage, parent_location
from orchestrator.signals import Stopped
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Checkpoint, Status, Store, StoredRun
from orchestrator.store.cells import store_published_cells

if TYPE_CHECKING:
    from orchestrator.tracking import TrackingRecorder

MLFLOW_PATIENCE_S = 60.0


@dataclass(frozen=True)
class RunOutcome:
    """The result of one invocation: its runs as stored afterwards, and the file of the tables.

    `signal` is the signal that stopped it, or None. `problem` is the reason why MLflow is
    incomplete, or None.
    """

    plan: tuple[PlannedRun, ...]
    runs: tuple[StoredRun, ...]
    tables: Path
    signal: int | None = None
    problem: str | None = None

    @property
    def done(self) -> bool:
        """Return whether every run is finished and sound."""
        return all(run.status is Status.DONE for run in self.runs)


def run(
    experiment: Experiment,
    *,
    observer: Observer | None = None,
    only: str | None = None,
    seeds: str | None = None,
    jobs: int | None = None,
    address: str = LOCAL,
    results: Path | str | None = None,
    store: str | None = None,
    storage: str | None = None,
    retries: int = 3,
    fail_fast: bool = False,
    rerun: str | None = None,
) -> RunOutcome:
    """Train every run of the experiment that is not done in the store, then write the tables.

    The profile and changed settings are the experiment's, see `load_experiment`. The options are
    those of the command `run`:

    - `only`: IDs of the runs to train, such as "0,20-24"; all by default
    - `seeds`: replicates of each run to train, such as "0..4"; only the run itself by default
    - `jobs`: maximum number of runs at a time
    - `address`: Ray cluster: "local" starts one on this machine; or "auto", or "HOST:PORT"
    - `results`: folder of the results; `results/` beside the experiment's file by default
    - `store`: path or SQLAlchemy URL of the store; `store.db` in the results by default
    - `storage`: path or URI of the checkpoints; `ray/` in the results by default
    - `retries`: number of retries of a run whose worker was lost
    - `fail_fast`: stop all runs when one fails
    - `rerun`: IDs of runs whose stored results are deleted first

    `observer` receives messages and progress; by default nobody does.

    Raises: AOLError, the base of the errors of `aol` and `orchestrator`.
    """
    prepare()
    options = RunOptions(
        spec=experiment.path,
        only=only,
        seeds=seeds,
        jobs=jobs,
        address=address,
        results=results,
        store=store,
        storage=storage,
        retries=retries,
        fail_fast=fail_fast,
        rerun=rerun,
    )
    with Session(options, observer, experiment) as session:
        return run_session(session)


def run_session(session: Session) -> RunOutcome:
    """Run a session: plan, train, write the tables.

    Raises: AOLError; Stopped if a signal arrived before a run was queued.
    """
    with session.stop.deferred(session.observer.interrupted):
        outcome = _run_session(session)
    return replace(outcome, signal=session.stop.number)


def _run_session(session: Session) -> RunOutcome:
    session.log_to_file()
    store = Store(session.store_location, exclusive=True)
    session.stack.callback(store.close)
    heartbeat = session.stack.enter_context(Heartbeat(store))
    store.recover()
    plan = session.plan(store)
    session.observer.planned(plan, session.experiment.profile, mask_secrets(session.store_location))
    todo = [item for item in plan if item.todo]
    requests = _prepare(session, store, plan, todo) if todo else {}
    outdated = _outdated_in_mlflow(store, plan)
    tracking = _start_tracking(session, store, outdated) if todo or outdated else None
    if tracking and todo:
        with suppress(Stopped):
            _train(session, store, todo, requests, (heartbeat, tracking))
    if session.stop.number is not None:
        store.recover()
    store_published_cells(session.whole, store)
    report = make_report(session.whole, store)
    try:
        tables = write_report(report, session.results, "md")  # before MLflow, which may be slow
    finally:
        problem = _finish_tracking(session, store, tracking) if tracking else None
    runs = store.runs([item.run.key for item in plan])
    return RunOutcome(tuple(plan), tuple(runs), tables, problem=problem)


def _prepare(
    session: Session, store: Store, plan: Sequence[PlannedRun], todo: Sequence[PlannedRun]
) -> dict[str, resources.ResourceRequest]:
    """Check what the plan needs and queue its runs; return each run's resources by key."""
    requests = session.preflight(plan)
    from orchestrator.driver.datasets import prepare_all
    from orchestrator.scheduling.storage import check_storage

    check_storage(session.storage)
    datasets = {item.run.train.data.name for item in todo}
    session.stop.interruptible(partial(prepare_all, session.experiment, datasets, session.observer))
    session.stop.check()
    _delete_runs(session, store, todo)
    store.queue(item.run for item in todo)
    return requests


def _outdated_in_mlflow(store: Store, plan: Sequence[PlannedRun]) -> list[str]:
    """Return the keys of runs that are not up to date in MLflow."""
    runs = store.runs([item.run.key for item in plan])
    return [run.key for run in runs if run.started_at and run.mlflow_status != run.status]


def _start_tracking(session: Session, store: Store, outdated: Sequence[str]) -> "TrackingRecorder":
    from orchestrator.tracking import TrackingRecorder, tracker_for

    tracker = tracker_for(session.options.spec, session.whole.name, session.results)
    if outdated:
        runs = pluralize(len(outdated), "run")
        session.observer.message(f"Sending {runs} that MLflow lacks to {tracker.name}")
    return TrackingRecorder(tracker, store, outdated=outdated)


def _finish_tracking(session: Session, store: Store, tracking: "TrackingRecorder") -> str | None:
    """Send the rest, the tables and the figures to MLflow; return what went wrong."""
    from orchestrator.tracking.publish import publish

    last = partial(publish, tracking.tracker, store, session.whole)
    return tracking.close(MLFLOW_PATIENCE_S, last, lambda: session.stop.urgent)


def _delete_runs(session: Session, store: Store, todo: Sequence[PlannedRun]) -> None:
    """Delete the records and checkpoints of the runs to train from the start."""
    storage, ids = CheckpointStorage(session.storage), session.rerun()
    for stored in store.runs({item.run.key for item in todo if item.run.id in ids}):
        store.delete_run(stored.key)  # first: a record must not outlive its checkpoints
        paths = [checkpoint.path for checkpoint in stored.checkpoints if checkpoint.managed]
        for folder in {parent_location(path) for path in paths}:
            storage.discard(folder)


def _train(
    session: Session,
    store: Store,
    todo: Sequence[PlannedRun],
    requests: Mapping[str, resources.ResourceRequest],
    recorders: Sequence[Recorder],
) -> None:
    """Train the runs on the cluster, longest first.

    `recorders` also receive their events, besides store and observer.

    Raises: Stopped, when none was started.
    """
    from orchestrator.driver.datasets import chosen_root
    from orchestrator.driver.recorder import StoreRecorder
    from orchestrator.provenance import Provenance, provenance
    from orchestrator.scheduling.cluster import connect
    from orchestrator.scheduling.machines import prepare_machines
    from orchestrator.scheduling.tuner import Job, SchedulingOptions, run_jobs

    options = session.options
    work, storage = _work(todo), CheckpointStorage(session.storage)
    datasets = sorted({item.run.train.data.name for item in todo})
    origins: dict[str, Provenance] = {name: provenance(name) for name in datasets}
    if any(origin.git_commit == UNKNOWN for origin in origins.values()):
        session.observer.message(UNKNOWN_COMMIT, important=True)
    recorder = StoreRecorder(
        store,
        origins,
        storage.discard,
        partial(session.observer.message, important=True),
    )
    jobs = [
        Job(item.run, requests[item.run.key], _located(item.checkpoints, storage))
        for item in sorted(todo, key=lambda item: -work[item.run.key])
    ]
    scheduling = SchedulingOptions(
        storage=session.storage,
        data_root=chosen_root(session.experiment),
        log_folder=session.logs,
        checkpoint_seconds=session.whole.checkpoint_seconds,
        jobs=options.jobs,
        retries=options.retries,
        fail_fast=options.fail_fast,
        warn=partial(session.observer.message, important=True),
        stop=session.stop,
    )
    session.stop.check()
    with ExitStack() as stack:
        session.observer.message(f"Starting Ray ({session.cluster}) ...")
        if options.address == LOCAL:
            stack.enter_context(connect(LOCAL, session.cluster))
        session.stop.check()
        prepare_machines(datasets, scheduling)
        session.stop.check()
        with session.observer.watch(work, session.logs) as console:
            try:
                run_jobs(jobs, [recorder, *recorders, console], scheduling)
            finally:
                recorder.close(must_stop=lambda: session.stop.urgent)


def _located(
    checkpoints: Sequence[Checkpoint], storage: CheckpointStorage
) -> tuple[Checkpoint, ...]:
    """Return the checkpoints with the locations to read them from."""
    return tuple(
        replace(one, path=storage.locate(one.path)) if one.managed else one for one in checkpoints
    )


def _work(todo: Sequence[PlannedRun]) -> dict[str, float]:
    """Return the floating-point operations that each run still needs, by key."""
    return {
        item.run.key: resources.cost(item.run).flop * (1 - item.epoch / item.run.train.epochs)
        for item in todo
    }
