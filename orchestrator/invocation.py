"""One `run` or `plan` from its request to its exit code."""

import json
import logging
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer
from filelock import FileLock, Timeout
from rich.console import Console

from orchestrator import plan as planning
from orchestrator.environment import LOCAL, prepare_ray
from orchestrator.events import Recorder
from orchestrator.plan import Action, Cluster, PlannedRun
from orchestrator.progress import duration, plan_table
from orchestrator.report import fill_tables, write
from orchestrator.spec import ids_of
from orchestrator.specfile import SpecFile
from orchestrator.store import Status, Store, StoreError

EXIT_SOME_FAILED = 3
MLFLOW_PATIENCE_S = 60.0
PIPED_WIDTH = 160

if TYPE_CHECKING:
    from orchestrator.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    spec: Path
    profile: str | None = None
    only: str | None = None
    seeds: str | None = None
    settings: tuple[str, ...] = ()
    jobs: int | None = None
    address: str = LOCAL
    results: Path | None = None
    store: str | None = None
    storage: str | None = None
    retries: int = 3
    fail_fast: bool = False
    rerun: str | None = None
    quiet: bool = False
    verbose: bool = False


class Invocation:
    """Holds what an invocation opens: the store, its lock, the cluster."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.console = Console(file=sys.stderr)
        self.results = (request.results or request.spec.parent / "results").absolute()
        self._stack = ExitStack()

    def __enter__(self) -> "Invocation":
        """Read SPEC, find the cluster and choose the profile."""
        request = self.request
        prepare_ray(request.address)
        self.file = SpecFile(request.spec)
        self.cluster = self._find_cluster()
        self.profile = request.profile or self._fitting_profile()
        self.whole = self.file.experiment(self.profile, request.settings)
        self.experiment = self.whole.chosen(request.only, request.seeds)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def plan_only(self, *, as_json: bool = False) -> int:
        """Print the plan; nothing is written."""
        location = self._store_location()
        exists = "://" in location or Path(location).exists()
        stored = Store(location).runs() if exists else []
        made = planning.make_plan(self.experiment, stored, self._rerun())
        if as_json:
            typer.echo(json.dumps(planning.as_rows(made), indent=2))
        else:
            width = None if sys.stdout.isatty() else PIPED_WIDTH
            table = plan_table(made, self.experiment.profile)
            Console(file=sys.stdout, width=width).print(table)
        self._preflight(made)
        return 0

    def run(self) -> int:
        """Train what is to be trained, write the tables; returns the exit code."""
        self._log_to_file()
        store = self._locked_store()
        store.recover()
        made = planning.make_plan(self.experiment, store.runs(), self._rerun())
        todo = [item for item in made if item.todo]
        if not todo:
            self._say(f"Nothing to do: {_counted(made)} in {self._store_location()}.")
            return self._close(store, made, None)
        if not self.request.quiet:
            self.console.print(plan_table(made, self.experiment.profile))
        costs = self._preflight(made)
        from orchestrator.images import prepare_all

        prepare_all(self.experiment, [item.run for item in todo])
        self._forget(store, todo)
        store.queue(item.run for item in todo)
        work = {
            item.run.key: costs[item.run.key].flop * (1 - item.epoch / item.run.train.epochs)
            for item in todo
        }
        todo.sort(key=lambda item: -work[item.run.key])
        stopped = self._train(store, todo, work)
        return self._close(store, made, stopped)

    def _find_cluster(self) -> Cluster:
        if self.request.address == LOCAL:
            return planning.local_cluster()
        from orchestrator.schedule import cluster

        return self._stack.enter_context(cluster(self.request.address, planning.local_cluster()))

    def _fitting_profile(self) -> str:
        """The profile for this cluster; says so where it is not the GPU's."""
        chosen = self.file.default_profile(has_gpu=self.cluster.gpus > 0)
        wanted = self.file.default_profile(has_gpu=True)
        if chosen != wanted and not self.request.quiet:
            flop = sum(planning.cost(run).flop for run in self.file.experiment(wanted).runs)
            rate = planning.cpu_rate() * self.cluster.cpus / planning.local_cluster().cpus
            self._say(
                f"No GPU here: the profile `{wanted}` would take about {duration(flop / rate)} on "
                f"{self.cluster.cpus:g} CPUs (estimated). Running `{chosen}` instead; "
                f"--profile {wanted} insists."
            )
        return chosen

    def _store_location(self) -> str:
        return self.request.store or str(self.results / "store.db")

    def _locked_store(self) -> Store:
        """The store, with a lock that keeps a second driver away. Raises: StoreError."""
        store = Store(self._store_location())
        self.results.mkdir(parents=True, exist_ok=True)
        path = self.results / "driver.lock"
        if store.engine.url.get_backend_name() == "sqlite" and store.engine.url.database:
            path = Path(f"{store.engine.url.database}.lock")
        lock = FileLock(path, timeout=0)
        try:
            self._stack.enter_context(lock)
        except Timeout:
            raise StoreError(
                f"another `run` is writing to {self._store_location()}; wait for it (`status` "
                "shows it), or choose another --store"
            ) from None
        return store

    def _rerun(self) -> tuple[int, ...]:
        """The IDs of the runs to train anew. Raises: SpecError."""
        if not self.request.rerun:
            return ()
        ids = ids_of("--rerun", self.request.rerun)
        self.experiment.select(ids, "--rerun")
        return ids

    def _forget(self, store: Store, todo: Sequence[PlannedRun]) -> None:
        """Drop what the store and the storage hold of the runs to train anew."""
        from orchestrator.schedule import discard

        anew = {item.run.key for item in todo if item.run.id in self._rerun()}
        for stored in store.runs(anew):
            for checkpoint in stored.checkpoints:
                discard(checkpoint.path)
            store.forget(stored.key)

    def _preflight(self, made: Sequence[PlannedRun]) -> dict[str, planning.Cost]:
        """Costs by key of what would train. Raises: PlanError if it cannot."""
        todo = {item.run.key: item.run for item in made if item.todo}
        requests = {
            key: (run, planning.request(run, self.cluster, self._parallel()))
            for key, run in todo.items()
        }
        planning.check_requests(requests, self.cluster)
        costs = planning.costs(todo.values())
        storage = self._storage()
        if "://" not in storage:
            planning.check_disk(costs.values(), Path(storage))
        return costs

    def _parallel(self) -> int:
        return min(len(self.experiment.runs), self.request.jobs or sys.maxsize) or 1

    def _storage(self) -> str:
        given = self.request.storage or str(self.results / "ray")
        return given if "://" in given else str(Path(given).absolute())

    def _train(
        self, store: Store, todo: Sequence[PlannedRun], work: dict[str, float]
    ) -> int | None:
        """Train the runs on the cluster; returns the signal that stopped it."""
        from orchestrator import schedule
        from orchestrator.images import chosen_root
        from orchestrator.progress import ConsoleRecorder
        from orchestrator.provenance import provenance
        from orchestrator.recording import StoreRecorder
        from orchestrator.tracking import Tracker, TrackingRecorder, tracking_uri

        request, folder = self.request, self.request.spec.parent
        tracker = Tracker(tracking_uri(folder), self.whole.name, folder / "mlruns")
        datasets: set[str] = {item.run.train.data.name for item in todo}
        origins = {name: provenance(name) for name in datasets}
        tracking = TrackingRecorder(tracker, store)
        screen = ConsoleRecorder(self.console, work, self.results / "logs", quiet=request.quiet)
        jobs = [
            schedule.Job(
                item.run,
                planning.request(item.run, self.cluster, self._parallel()),
                item.checkpoints,
            )
            for item in todo
        ]
        options = schedule.Options(
            storage=self._storage(),
            data_root=chosen_root(self.experiment),
            log_folder=self.results / "logs",
            checkpoint_seconds=self.whole.checkpoint_seconds,
            jobs=request.jobs,
            retries=request.retries,
            fail_fast=request.fail_fast,
        )
        keeper = StoreRecorder(store, origins, schedule.discard)
        recorders: list[Recorder] = [keeper, tracking, screen]
        self._say(f"Starting Ray ({self.cluster}) ...")
        with ExitStack() as stack:
            if request.address == LOCAL:
                stack.enter_context(schedule.cluster(LOCAL, self.cluster))
            with screen:
                stopped = schedule.run_all(jobs, recorders, options)
        problem = tracking.close(MLFLOW_PATIENCE_S)
        if problem is None:
            problem = self._attach_tables(tracker, store, todo)
        if problem:
            self._say(
                f"{problem}\nThe store has everything; `sync` sends it to MLflow.", always=True
            )
        return stopped

    def _attach_tables(
        self, tracker: "Tracker", store: Store, todo: Sequence[PlannedRun]
    ) -> str | None:
        from orchestrator.tracking import TrackingError

        path = write(self.whole, fill_tables(self.whole, store), self.results, "md")
        try:
            tracker.attach(store, [item.run.key for item in todo], [path])
        except TrackingError as error:
            return str(error)
        return None

    def _close(self, store: Store, made: Sequence[PlannedRun], stopped: int | None) -> int:
        """Write the tables, say where they are and what to do next; the exit code."""
        path = write(self.whole, fill_tables(self.whole, store), self.results, "md")
        states = {run.key: run for run in store.runs([item.run.key for item in made])}
        counts = Counter(str(run.status) for run in states.values())
        self._say(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) + ".")
        self._say(f"Tables: {_relative(path)}")
        if stopped is not None:
            self._say(f"Stopped. The same command continues: {_command()}")
            return 128 + stopped
        unsound = [run for run in states.values() if run.status is Status.UNSOUND]
        for run in unsound:
            self._say(f"Unsound, not in the tables: run {run.run_id}, {run.error}", always=True)
        broken = [run for run in states.values() if run.status in (Status.FAILED, Status.DIVERGED)]
        if broken:
            named = ", ".join(f"{run.run_id} ({run.status})" for run in broken)
            self._say(
                f"Not finished: {named}. Logs: {_relative(self.results / 'logs')}/", always=True
            )
        if broken or unsound:
            return EXIT_SOME_FAILED
        if any(run.status is not Status.DONE for run in states.values()):
            self._say(f"Not all runs are finished. The same command continues: {_command()}")
            return EXIT_SOME_FAILED
        options = "".join(f" --set {text}" for text in self.request.settings)
        printer = f"{_program('python')} -m orchestrator report {_relative(self.request.spec)}"
        self._say(f"Print them: {printer} --profile {self.profile}{options}")
        self._say(f"Every run with its curves: {_program('mlflow')} ui")
        return 0

    def _say(self, text: str, *, always: bool = False) -> None:
        if always or not self.request.quiet:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _log_to_file(self) -> None:
        """Send what libraries say to a file; warnings too."""
        folder = self.results / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        handler: logging.Handler = logging.FileHandler(folder / "driver.log")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.captureWarnings(True)
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        if self.request.verbose:
            root.addHandler(logging.StreamHandler(sys.stderr))
        self._stack.callback(root.removeHandler, handler)
        self._stack.callback(handler.close)


def _counted(made: Sequence[PlannedRun]) -> str:
    done = sum(item.action is Action.DONE for item in made)
    others = [item.action for item in made if item.action in (Action.DIVERGED, Action.UNSOUND)]
    named = "".join(f", {count} {action}" for action, count in Counter(others).items())
    return f"{done} runs are done{named}"


def _relative(path: Path) -> str:
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)


def _program(name: str) -> str:
    """How this environment's `name` is called from here."""
    path = Path(sys.executable).parent / name
    return name if shutil.which(name) == str(path) else _relative(path)


def _command() -> str:
    return " ".join([f"{_program('python')} -m orchestrator", *sys.argv[1:]])
