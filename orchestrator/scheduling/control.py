"""The channel from the driver to its workers: stop requests and the latest checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.store import CHECKPOINTS_KEPT


@ray.remote(num_cpus=0)
class _ControlState:
    """The state of the actor. Tune has no other way to pass something to a running worker."""

    def __init__(self, checkpoints: dict[str, list[str]]) -> None:
        self.stop = False
        self.checkpoints = checkpoints

    def request_stop(self) -> None:
        self.stop = True

    def stop_requested(self) -> bool:
        return self.stop

    def add_checkpoint(self, key: str, checkpoint: str) -> None:
        self.checkpoints[key] = [checkpoint, *self.checkpoints[key]][:CHECKPOINTS_KEPT]

    def get_checkpoints(self, key: str) -> list[str]:
        return self.checkpoints[key]


class ControlActor:
    """The driver's handle of the actor, which runs on the driver's machine."""

    def __init__(self, checkpoints: Mapping[str, Sequence[str]]) -> None:
        """`checkpoints` are the locations to continue from, newest first, by key of the run."""
        self.name = f"aol-control-{uuid4().hex}"  # drivers may share a cluster
        self._checkpoints = {key: list(locations) for key, locations in checkpoints.items()}
        self._actor: Any = None

    def start(self) -> None:
        """Start the actor in the connected cluster."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = _ControlState.options(name=self.name, scheduling_strategy=here)  # type: ignore[attr-defined]
        self._actor = options.remote(self._checkpoints)

    def close(self) -> None:
        """Stop the actor."""
        if self._actor is not None:
            ray.kill(self._actor)

    def request_stop(self) -> None:
        """Request that every worker saves and stops after its current epoch."""
        self._actor.request_stop.remote()

    def add_checkpoint(self, key: str, checkpoint: str) -> None:
        """Add a run's newest checkpoint."""
        self._actor.add_checkpoint.remote(key, checkpoint)


class ControlReader:
    """A worker's handle of the actor. If the actor is gone, training continues."""

    def __init__(self, name: str) -> None:
        self._name = name

    def stop_requested(self) -> bool:
        """Return whether this worker must save and stop."""
        return bool(self._call("stop_requested"))

    def checkpoints(self, key: str) -> list[str] | None:
        """Return the locations to continue from, newest first; None if the actor is gone."""
        found: list[str] | None = self._call("get_checkpoints", key)
        return found

    def _call(self, method: str, *arguments: str) -> Any:
        try:
            return ray.get(getattr(ray.get_actor(self._name), method).remote(*arguments))
        except (ray.exceptions.RayError, ValueError):  # ValueError: there is no such actor
            return None
