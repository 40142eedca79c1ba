"""One invocation of `run` or `plan`: its options, experiment, cluster and folders."""

import logging
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from orchestrator.driver.observer import Observer, SilentObserver
from orchestrator.environment import LOCAL, prepare_ray
from orchestrator.errors import RequestError, ResourceError
from orchestrator.formatting import format_duration, pluralize
from orchestrator.logs import LogFile
from orchestrator.masking import SafeFormatter, has_secret
from orchestrator.planning import resources
from orchestrator.planning.plan import PlannedRun, plan
from orchestrator.planning.resources import Cluster
from orchestrator.scheduling.storage import CHECKPOINTS, absolute_location, is_uri
from orchestrator.signals import StopSignals, stop_signals
from orchestrator.spec.experiment import Experiment, parse_ids_option
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `run`, except those of the console."""

    spec: Path
    profile: str | None = None
    only: str | None = None
    seeds: str | None = None
    settings: tuple[str, ...] = ()
    jobs: int | None = None
    address: str = LOCAL
    results: Path | str | None = None
    store: str | None = None
    storage: str | None = None
    retries: int = 3
    fail_fast: bool = False
    rerun: str | None = None


class Session:
    """An invocation with everything that its options refer to; use it in a `with` block.

    `whole` is the experiment with all its runs, whose tables are written; `experiment` has only the
    selected runs and replicates.
    """

    whole: Experiment
    experiment: Experiment
    cluster: Cluster
    stop: StopSignals

    def __init__(
        self,
        options: RunOptions,
        observer: Observer | None = None,
        experiment: Experiment | None = None,
    ) -> None:
        """Use the given experiment, or read the file in the options."""
        self.options = options
        self.observer = observer or SilentObserver()
        self.results = (
            Path(options.results or options.spec.parent / "results").expanduser().absolute()
        )
        self.logs = self.results / "logs"
        self.store_location = options.store or str(self.results / "store.db")
        self.storage = absolute_location(options.storage or str(self.results / CHECKPOINTS))
        if has_secret(self.storage):
            raise RequestError(
                f"--storage {self.storage}: must have no password, because every checkpoint keeps "
                "its location; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
            )
        self.stack = ExitStack()  # closed when the session ends
        self._given = experiment

    def __enter__(self) -> "Session":
        """Find the cluster, choose the profile, read the file."""
        with self.stack:
            self._open()
            self.stack = self.stack.pop_all()
        return self

    def _open(self) -> None:
        options = self.options
        self.stop = self.stack.enter_context(stop_signals())
        prepare_ray(options.address)
        given = self._given or SpecFile(options.spec)
        self.cluster = self._find_cluster()
        if isinstance(given, SpecFile):
            profile = options.profile or self._default_profile(given)
            given = given.experiment(profile, options.settings)
        self.whole = given.whole
        self.experiment = given.subset(options.only, options.seeds)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stack.__exit__(kind, error, trace)

    def plan(self, store: Store | None) -> list[PlannedRun]:
        """Return the action for each run, in the file's order. Raises: SpecError, StoreError."""
        return plan(self.experiment, store, self.rerun())

    def rerun(self) -> tuple[int, ...]:
        """Return the IDs of the runs to train from the start. Raises: SpecError."""
        if not self.options.rerun:
            return ()
        ids = parse_ids_option("--rerun", self.options.rerun)
        self.experiment.select(ids, "--rerun")
        return ids

    def preflight(self, planned: Sequence[PlannedRun]) -> dict[str, resources.ResourceRequest]:
        """Return the resources of each run that is to train, by key.

        Raises: ResourceError if cluster or disk cannot provide them.
        """
        todo = [item.run for item in planned if item.todo]
        parallel = min(len(todo), self.options.jobs or sys.maxsize) or 1
        requests = [resources.request_resources(run, self.cluster, parallel) for run in todo]
        resources.check_requests(zip(todo, requests, strict=True), self.cluster)
        costs = resources.costs(todo)
        if not is_uri(self.storage):
            resources.check_disk(costs.values(), Path(self.storage))
        return {run.key: request for run, request in zip(todo, requests, strict=True)}

    def log_to_file(self) -> None:
        """Send the log messages and warnings of all libraries to `driver.log` until the end.

        Raises: ResourceError if the results folder is not writable.
        """
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            file = self.stack.enter_context(LogFile(self.logs / "driver.log"))
        except OSError as error:
            raise ResourceError(f"--results {self.results}: cannot be used: {error}") from error
        handler = logging.StreamHandler(file)
        handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        self.stack.callback(root.removeHandler, handler)
        self.stack.callback(root.setLevel, root.level)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        shown = warnings.showwarning
        logging.captureWarnings(True)
        if warnings.showwarning is not shown:  # else the caller captures them already
            self.stack.callback(logging.captureWarnings, False)

    def _find_cluster(self) -> Cluster:
        if self.options.address == LOCAL:
            return resources.local_cluster()
        from orchestrator.scheduling.cluster import connect

        with self.stop.deferred(self.observer.interrupted):  # Ray can hang if it is interrupted
            cluster = connect(self.options.address, resources.local_cluster())
            found = self.stack.enter_context(cluster)
        self.stop.check()
        return found

    def _default_profile(self, file: SpecFile) -> str:
        """Return the profile for this cluster; send a message if it is not the one for GPUs."""
        chosen = file.default_profile(has_gpu=self.cluster.gpus > 0)
        recommended = file.default_profile(has_gpu=True)
        if chosen != recommended:
            flop = sum(resources.cost(run).flop for run in file.experiment(recommended).runs)
            length = format_duration(resources.cpu_seconds(flop, self.cluster), rough=True)
            self.observer.message(
                f"No GPU found: the profile `{recommended}` would take about {length} on "
                f"{pluralize(self.cluster.cpus, 'CPU')} (a rough estimate). Using `{chosen}`; pass "
                f"--profile {recommended} to run it anyway."
            )
        return chosen
