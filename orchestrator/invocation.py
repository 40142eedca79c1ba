"""One `run` or `plan`: what was asked for, on which cluster, and what is to be done."""

import json
import logging
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import typer
from rich.console import Console

from orchestrator import plan as planning
from orchestrator import resources
from orchestrator.budget import affordable, gpu_hours
from orchestrator.costing import budget_json, budget_text, missing_json, missing_text
from orchestrator.environment import LOCAL, prepare_ray
from orchestrator.location import absolute, is_uri
from orchestrator.needs import Needs, needs_of
from orchestrator.numbers import duration, number_of
from orchestrator.plan import PlannedRun
from orchestrator.progress import plan_table
from orchestrator.report import make_report
from orchestrator.resources import Cluster, PlanError
from orchestrator.spec import ids_of
from orchestrator.specfile import SpecFile
from orchestrator.store import Store, exists

PIPED_WIDTH = 160
IN_MEMORY = "sqlite://"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for: the options of `run`."""

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
    """A request with what it is about: the experiment, the cluster, the places of results."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.console = Console(file=sys.stderr)
        self.results = (request.results or request.spec.parent / "results").absolute()
        self.logs = self.results / "logs"
        self.store_location = request.store or str(self.results / "store.db")
        self.storage = absolute(request.storage or str(self.results / "ray"))
        self.stack = ExitStack()  # what is open until the invocation ends

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
        self.stack.close()

    def print_plan(self, *, as_json: bool = False) -> int:
        """Print what `run` would do; nothing is written, but an old store gets its new schema."""
        made = self.plan(Store(self.store_location) if exists(self.store_location) else None)
        if as_json:
            typer.echo(json.dumps(planning.as_rows(made), indent=2))
        else:
            width = None if sys.stdout.isatty() else PIPED_WIDTH
            table = plan_table(made, self.experiment.profile)
            Console(file=sys.stdout, width=width).print(table)
        self.preflight(made)
        return 0

    def print_missing(self, table: str | None, *, as_json: bool = False) -> int:
        """Print which cells are not settled, and what would settle them."""
        needs = self._needs(table)
        text = (missing_json if as_json else missing_text)(needs, self.cluster)
        typer.echo(text)
        return 0

    def print_budget(self, budget: str, table: str | None, *, as_json: bool = False) -> int:
        """Print which runs settle most cells within a budget, in which order."""
        hours = gpu_hours(budget, self.whole.prices)
        needs = self._needs(table)
        chosen = affordable(needs.runs, hours)
        if as_json:
            typer.echo(budget_json(chosen, needs, hours))
        else:
            typer.echo(budget_text(chosen, needs, hours, self._run_command()))
        return 0

    def _needs(self, table: str | None) -> Needs:
        found = exists(self.store_location)
        store = Store(self.store_location if found else IN_MEMORY)  # then everything is missing
        report = make_report(self.whole, store)  # whose verdicts are those of all its cells
        only = {run.id for run in self.experiment.runs}
        return needs_of(report, store, table and self.whole.table(table).id, only=only)

    def _run_command(self) -> str:
        """`run` with the options that lead to this experiment and this store."""
        request = self.request
        places = {"--results": request.results, "--store": request.store}
        given = [part for name, place in places.items() if place for part in (name, str(place))]
        words = ["run", str(request.spec), *self.whole.options, *given]
        return f"python -m orchestrator {shlex.join(words)}"

    def plan(self, store: Store | None) -> list[PlannedRun]:
        """What to do with each run, in the order of SPEC. Raises: SpecError, StoreError."""
        stored = store.runs(ids={run.id for run in self.experiment.runs}) if store else []
        return planning.make_plan(self.experiment, stored, self.rerun())

    def rerun(self) -> tuple[int, ...]:
        """The IDs of the runs to train anew. Raises: SpecError."""
        if not self.request.rerun:
            return ()
        ids = ids_of("--rerun", self.request.rerun)
        self.experiment.select(ids, "--rerun")
        return ids

    def preflight(self, made: Sequence[PlannedRun]) -> dict[str, resources.Request]:
        """What each run that is to train occupies, by key. Raises: PlanError if that cannot be."""
        todo = [item.run for item in made if item.todo]
        parallel = min(len(todo), self.request.jobs or sys.maxsize) or 1
        requests = [resources.request(run, self.cluster, parallel) for run in todo]
        resources.check_requests(zip(todo, requests, strict=True), self.cluster)
        costs = resources.costs(todo)
        if not is_uri(self.storage):
            resources.check_disk(costs.values(), Path(self.storage))
        return {run.key: asked for run, asked in zip(todo, requests, strict=True)}

    def say(self, text: str, *, always: bool = False) -> None:
        """Print a line for people, unless they want quiet."""
        if always or not self.request.quiet:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def log_to_file(self) -> None:
        """Send what libraries say to a file; warnings too."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            handler: logging.Handler = logging.FileHandler(self.logs / "driver.log")
        except OSError as error:
            raise PlanError(f"--results {self.results}: cannot be used: {error}") from error
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.captureWarnings(True)
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        if self.request.verbose:
            root.addHandler(logging.StreamHandler(sys.stderr))
        self.stack.callback(root.removeHandler, handler)
        self.stack.callback(handler.close)

    def _find_cluster(self) -> Cluster:
        if self.request.address == LOCAL:
            return resources.local_cluster()
        from orchestrator.schedule import cluster

        return self.stack.enter_context(cluster(self.request.address, resources.local_cluster()))

    def _fitting_profile(self) -> str:
        """The profile for this cluster; says so where it is not the GPU's."""
        chosen = self.file.default_profile(has_gpu=self.cluster.gpus > 0)
        wanted = self.file.default_profile(has_gpu=True)
        if chosen != wanted and not self.request.quiet:
            flop = sum(resources.cost(run).flop for run in self.file.experiment(wanted).runs)
            length = duration(resources.cpu_seconds(flop, self.cluster), rough=True)
            self.say(
                f"No GPU here: the profile `{wanted}` would take about {length} on "
                f"{number_of(self.cluster.cpus, 'CPU')} (a rough estimate). Taking `{chosen}`; "
                f"--profile {wanted} insists."
            )
        return chosen
