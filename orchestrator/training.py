"""`run`: trains what is to be trained, and tells what became of it."""

import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import resources
from orchestrator.cells import note_cells
from orchestrator.environment import LOCAL, SIGTERM_EXIT
from orchestrator.invocation import Invocation
from orchestrator.location import parent
from orchestrator.numbers import number_of
from orchestrator.plan import Action, PlannedRun
from orchestrator.progress import plan_table
from orchestrator.report import make_report, write
from orchestrator.signals import deferred
from orchestrator.store import Status, Store

if TYPE_CHECKING:
    from orchestrator.tracking import TrackingRecorder

EXIT_SOME_FAILED = 3
MLFLOW_PATIENCE_S = 60.0


def run(invocation: Invocation) -> int:
    """Train what the store does not hold, write the tables; returns the exit code."""
    invocation.log_to_file()
    store = Store(invocation.store_location, exclusive=True)
    invocation.stack.callback(store.close)
    store.recover()
    made = invocation.plan(store)
    todo = [item for item in made if item.todo]
    requests: dict[str, resources.Request] = {}
    if todo:
        requests = _prepared(invocation, store, made, todo)
    else:
        invocation.say(f"Nothing to do: {_counted(made)} in {invocation.store_location}.")
    behind = _behind(store, made)
    tracking = _tracking(invocation, store, behind) if todo or behind else None
    stopped = _trained(invocation, store, todo, requests, tracking) if tracking and todo else None
    note_cells(invocation.whole, store)
    tables = _write_tables(invocation, store)  # before MLflow, which may be slow
    if tracking:
        _finish(invocation, store, tracking)
    return _close(invocation, store, made, tables, stopped)


def _prepared(
    invocation: Invocation, store: Store, made: Sequence[PlannedRun], todo: Sequence[PlannedRun]
) -> dict[str, resources.Request]:
    """Print the plan, check what it needs, queue its runs; what each run occupies, by key."""
    if not invocation.request.quiet:
        invocation.console.print(plan_table(made, invocation.experiment.profile))
    requests = invocation.preflight(made)
    from orchestrator.images import prepare_all
    from orchestrator.schedule import check_storage

    check_storage(invocation.storage)
    prepare_all(invocation.experiment, {item.run.train.data.name for item in todo})
    _forget(invocation, store, todo)
    store.queue(item.run for item in todo)
    return requests


def _behind(store: Store, made: Sequence[PlannedRun]) -> list[str]:
    """The runs of which MLflow lacks something: it was away, or the driver was killed."""
    runs = store.runs([item.run.key for item in made])
    return [run.key for run in runs if run.started_at and run.mlflow_status != run.status]


def _tracking(invocation: Invocation, store: Store, behind: Sequence[str]) -> "TrackingRecorder":
    from orchestrator.tracking import Tracker, TrackingRecorder, tracking_uri

    folder = invocation.request.spec.parent
    tracker = Tracker(tracking_uri(folder), invocation.whole.name, folder / "mlruns")
    if behind:
        invocation.say(
            f"MLflow lacks {number_of(len(behind), 'run')}: sending what it lacks to {tracker.uri}"
        )
    return TrackingRecorder(tracker, store, behind=behind)


def _finish(invocation: Invocation, store: Store, tracking: "TrackingRecorder") -> None:
    """Give MLflow what it lacks, the tables and the figures; say what went wrong."""
    from orchestrator.publishing import publish

    last = partial(publish, tracking.tracker, store, invocation.whole)
    if problem := tracking.close(MLFLOW_PATIENCE_S, last):
        invocation.say(
            f"{problem}\nThe store has everything; `sync` sends it to MLflow.", always=True
        )


def _forget(invocation: Invocation, store: Store, todo: Sequence[PlannedRun]) -> None:
    """Drop what the store and the storage hold of the runs to train anew."""
    from orchestrator.schedule import discard

    ids = invocation.rerun()
    for stored in store.runs({item.run.key for item in todo if item.run.id in ids}):
        ours = [checkpoint.path for checkpoint in stored.checkpoints if checkpoint.ours]
        for folder in {parent(path) for path in ours}:
            discard(folder)
        store.forget(stored.key)


def _trained(
    invocation: Invocation,
    store: Store,
    todo: Sequence[PlannedRun],
    requests: Mapping[str, resources.Request],
    tracking: "TrackingRecorder",
) -> int | None:
    """Train the runs; returns the signal that stopped it, also one from before Tune heeded any."""
    try:
        stopped = _train(invocation, store, todo, requests, tracking)
    except KeyboardInterrupt:
        stopped = signal.SIGINT
    except SystemExit as exit_:
        if exit_.code not in (SIGTERM_EXIT, signal.SIGTERM):  # the latter is Ray's own
            raise
        stopped = signal.SIGTERM
    if stopped is not None:
        store.recover()
    return stopped


def _train(
    invocation: Invocation,
    store: Store,
    todo: Sequence[PlannedRun],
    requests: Mapping[str, resources.Request],
    tracking: "TrackingRecorder",
) -> int | None:
    """Train the runs on the cluster, longest first; returns the signal that stopped it."""
    from orchestrator import schedule
    from orchestrator.images import chosen_root
    from orchestrator.progress import ConsoleRecorder
    from orchestrator.provenance import provenance
    from orchestrator.recording import StoreRecorder

    request = invocation.request
    work = _work(todo)
    datasets = sorted({item.run.train.data.name for item in todo})
    screen = ConsoleRecorder(invocation.console, work, invocation.logs, quiet=request.quiet)
    keeper = StoreRecorder(store, {name: provenance(name) for name in datasets}, schedule.discard)
    jobs = [
        schedule.Job(item.run, requests[item.run.key], item.checkpoints)
        for item in sorted(todo, key=lambda item: -work[item.run.key])
    ]
    options = schedule.Options(
        storage=invocation.storage,
        data_root=chosen_root(invocation.experiment),
        log_folder=invocation.logs,
        checkpoint_seconds=invocation.whole.checkpoint_seconds,
        jobs=request.jobs,
        retries=request.retries,
        fail_fast=request.fail_fast,
    )
    with deferred() as noted, ExitStack() as stack:
        invocation.say(f"Starting Ray ({invocation.cluster}) ...")
        if request.address == LOCAL:
            stack.enter_context(schedule.cluster(LOCAL, invocation.cluster))
        schedule.prepare_machines(datasets, options.data_root, options.storage)
        if noted:
            return noted[0]
        with screen:
            stopped = schedule.run_all(jobs, [keeper, tracking, screen], options)
    return stopped


def _work(todo: Sequence[PlannedRun]) -> dict[str, float]:
    """Floating-point operations that each run still takes, by key."""
    return {
        item.run.key: resources.cost(item.run).flop * (1 - item.epoch / item.run.train.epochs)
        for item in todo
    }


def _write_tables(invocation: Invocation, store: Store) -> Path:
    return write(make_report(invocation.whole, store), invocation.results, "md")


def _close(
    invocation: Invocation,
    store: Store,
    made: Sequence[PlannedRun],
    tables: Path,
    stopped: int | None = None,
) -> int:
    """Say what became of the runs, where the tables are and what to do next; the exit code."""
    say, request = invocation.say, invocation.request
    runs = store.runs([item.run.key for item in made])
    counts = Counter(str(run.status) for run in runs)
    say(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + ".")
    say(f"Tables: {_relative(tables)}")
    if stopped is not None:
        say(f"Stopped. The same command continues: {_command()}")
        return 128 + stopped
    unsound = [run for run in runs if run.status is Status.UNSOUND]
    for run in unsound:
        say(f"Unsound, not in the tables: run {run.run_id}, {run.error}", always=True)
    broken = [run for run in runs if run.status in (Status.FAILED, Status.DIVERGED)]
    if broken:
        named = ", ".join(f"{run.run_id} ({run.status})" for run in broken)
        say(f"Not finished: {named}. Logs: {_relative(invocation.logs)}/", always=True)
    if broken or unsound:
        return EXIT_SOME_FAILED
    if any(run.status is not Status.DONE for run in runs):
        say(f"Not all runs are finished. The same command continues: {_command()}")
        return EXIT_SOME_FAILED
    options = list(invocation.whole.options)
    options += ["--results", str(request.results)] if request.results else []
    options += ["--store", request.store] if request.store else []
    printer = f"{_program('python')} -m orchestrator report {_relative(request.spec)}"
    say(f"Print them: {printer} {shlex.join(options)}")
    say(f"Every run with its curves: {_program('mlflow')} ui")
    return 0


def _counted(made: Sequence[PlannedRun]) -> str:
    done = sum(item.action is Action.DONE for item in made)
    others = [item.action for item in made if item.action in (Action.DIVERGED, Action.UNSOUND)]
    named = "".join(f", {count} {action}" for action, count in Counter(others).items())
    return f"{number_of(done, 'run is', 'runs are')} done{named}"


def _relative(path: Path) -> str:
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _program(name: str) -> str:
    """How this environment's `name` is called from here."""
    path = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(path) else _relative(path)


def _command() -> str:
    """The command as it was typed, without what must not be done twice."""
    kept, words = [], iter(sys.argv[1:])
    for word in words:
        if word == "--rerun":
            next(words, None)
        elif not word.startswith("--rerun="):
            kept.append(word)
    return f"{_program('python')} -m orchestrator {shlex.join(kept)}"
