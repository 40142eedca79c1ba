"""The machines on which trials are placed, after faults of machines."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.air.execution._internal import actor_manager
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from orchestrator.scheduling.callback import trial_key
from orchestrator.scheduling.faults import Fault, FaultKind

logger = logging.getLogger(__name__)

NODE_LABEL = "ray.io/node-id"
KILLED = re.compile(r"Memory on the node \(IP: ([^,]+), .*?\) was (\S+ used / \S+) limit")
FAULTS_TOLERATED = 1  # of a machine's GPUs or disk, before it gets no more runs


class Placement(FIFOScheduler):
    """Tries a run elsewhere after a fault of its machine, and alone if its memory was too small.

    A machine whose GPUs or disk failed repeatedly gets no more runs, unless no other can train
    them.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.warn = warn
        self.reasons: dict[str, str] = {}  # of the last failure of a run, by key
        self._reported: dict[str, tuple[str, Fault]] = {}  # the faulty node, by key of its run
        self._faults: Counter[str] = Counter()
        self._excluded: set[str] = set()
        self._avoided: defaultdict[str, set[str]] = defaultdict(set)
        self._alone: set[str] = set()
        self._training: set[str] = set()
        self._added: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its scheduler to a file that is never read again."""
        return {}

    # Called by Tune

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Keep a new trial from excluded machines; Tune adds one again that it tries again."""
        if trial_key(trial) not in self._added:
            self._added.add(trial_key(trial))
            trial.update_resources(self._request(trial))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Remember a reported fault: the trial ends with an error next."""
        key, kind = trial_key(trial), result.get("kind")
        if kind == "placed":
            self._training.add(key)
        if kind == "fault":
            fault = self._fault(trial, result)
            self._reported[key] = result["node"], fault
            if fault.kind is FaultKind.MEMORY and key in self._alone:
                trial.max_failures = 0  # Tune decides on another attempt before `on_trial_error`
        return str(self.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Choose where a trial is tried again, if it is."""
        key = trial_key(trial)
        node, fault = self._reported.pop(key, ("", killed_for_memory(trial)))
        self.reasons.pop(key, None)
        self._training.discard(key)
        if fault:
            self._record(trial, node, fault)
        if trial.status != Trial.RUNNING:  # else it is not tried again
            trial.update_resources(self._request(trial))

    def _fault(self, trial: Trial, result: Mapping[str, Any]) -> Fault:
        """Return a reported fault; a GPU that is full before training starts is one that fails."""
        kind = FaultKind(result["fault"])
        starting = trial.config["job"]["gpus"] and trial_key(trial) not in self._training
        if kind is FaultKind.MEMORY and starting:
            kind = FaultKind.GPU
        return Fault(kind, result["error"])

    def _record(self, trial: Trial, node: str, fault: Fault) -> None:
        key = trial_key(trial)
        self.reasons[key] = fault.text
        logger.warning("run %s: %s", key, fault.text)
        if fault.kind is not FaultKind.MEMORY:
            self._avoided[key].add(node)
            self._faults[node] += 1
            if self._faults[node] > FAULTS_TOLERATED:
                self._exclude(trial, node, fault)
        elif key in self._alone:
            self.reasons[key] += "; it was alone on the machine, so it needs one with more memory"
        else:
            self._alone.add(key)
            trial.max_failures = min(trial.max_failures, trial.num_failures)  # one more attempt

    def _exclude(self, trial: Trial, node: str, fault: Fault) -> None:
        if node in self._excluded:
            return
        if not self._candidates(trial, self._excluded | {node}):
            return
        self._excluded.add(node)
        name = next(
            (one["NodeManagerHostname"] for one in ray.nodes() if one["NodeID"] == node), node
        )
        self.warn(
            f"machine {name} gets no more runs after {self._faults[node]} faults; {fault.text}"
        )

    def _request(self, trial: Trial) -> tune.PlacementGroupFactory:
        """Return the resources of a trial, on machines that did not fail it if there are any."""
        key, bundle = trial_key(trial), bundle_of(trial.config["job"])
        avoided = self._excluded | self._avoided[key]
        if not avoided and key not in self._alone:
            return tune.PlacementGroupFactory([bundle])
        if not self._candidates(trial, avoided, free=True):
            avoided = set(self._excluded)  # a trial that waits keeps all others from starting
        candidates = self._candidates(trial, avoided)
        if not candidates:
            avoided = set()
            candidates = self._candidates(trial, avoided)
        if key in self._alone and candidates:
            startable = self._candidates(trial, avoided, free=True)
            idle = [one for one in startable if one in candidates]
            largest = max(idle or candidates, key=lambda node: node.get("memory", 0.0))
            bundle = {name: largest[name] for name in bundle}
        if not avoided:
            return tune.PlacementGroupFactory([bundle])
        selector = {NODE_LABEL: f"!in({','.join(sorted(avoided))})"}
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[selector])

    def _candidates(
        self, trial: Trial, avoided: set[str], *, free: bool = False
    ) -> list[Mapping[str, float]]:
        """Return the resources of the machines outside `avoided` that can train a trial.

        With `free`, return the unused resources of those that can start it now.
        """
        bundle = bundle_of(trial.config["job"])
        unused = ray._private.state.available_resources_per_node() if free else {}
        found = [
            unused.get(node["NodeID"], {}) if free else node["Resources"]
            for node in ray.nodes()
            if node["Alive"] and node["NodeID"] not in avoided
        ]
        return [
            one
            for one in found
            if all(one.get(name, 0) >= amount for name, amount in bundle.items())
        ]


def bundle_of(job: Mapping[str, Any]) -> dict[str, float]:
    """Return the resources that a job occupies, as Ray names them."""
    return {"CPU": job["cpus"]} | ({"GPU": job["gpus"]} if job["gpus"] else {})


@contextmanager
def lost_workers_of_any_kind() -> Iterator[None]:
    """Make Tune treat every failure of a worker's process like the loss of the worker.

    Ray has an error of its own for a worker that it killed for memory; Tune, as of Ray 2.60, stops
    all trials at any error of Ray that it does not know.
    """
    manager, name = actor_manager.RayActorManager, "_actor_task_failed"
    handle = getattr(manager, name)

    def handle_as_loss(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        known = isinstance(exception, RayTaskError | RayActorError)
        if isinstance(exception, RayError) and not known:
            exception = RayActorError(error_msg=str(exception))
        handle(self, tracked_actor_task, exception)

    setattr(manager, name, handle_as_loss)
    try:
        yield
    finally:
        setattr(manager, name, handle)


def killed_for_memory(trial: Trial) -> Fault | None:
    """Return the fault if Ray killed the trial's worker because its machine ran out of memory."""
    if trial.error_file is None:
        return None
    last = Path(trial.error_file).read_text(encoding="utf-8").rpartition("Failure # ")[2]
    if found := KILLED.search(last):
        text = f"its worker was killed: the memory of machine {found[1]} was exhausted, {found[2]}"
        return Fault(FaultKind.MEMORY, text)
    return None
