"""What a driver tells its workers while they train: to stop, and where their checkpoints are."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.store import CHECKPOINTS_KEPT


@ray.remote(num_cpus=0)
class _ControlActor:
    """An actor, because Tune gives a worker nothing but the settings it started with."""

    def __init__(self, checkpoints: dict[str, list[str]]) -> None:
        self.stop = False
        self.checkpoints = checkpoints

    def raise_flag(self) -> None:
        self.stop = True

    def flag(self) -> bool:
        return self.stop

    def add(self, key: str, checkpoint: str) -> None:
        self.checkpoints[key] = [checkpoint, *self.checkpoints[key]][:CHECKPOINTS_KEPT]

    def of(self, key: str) -> list[str]:
        return self.checkpoints[key]


class ControlActor:
    """The driver's side. It lives on the driver's machine and ends with it."""

    def __init__(self, checkpoints: Mapping[str, Sequence[str]]) -> None:
        """`checkpoints` to continue from, newest first, by the key of their run."""
        self.name = f"aol-board-{uuid4().hex}"  # one per driver: clusters are shared
        self._checkpoints = {key: list(places) for key, places in checkpoints.items()}
        self._actor: Any = None

    def open(self) -> None:
        """Put it up; Ray has to be connected."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = _ControlActor.options(name=self.name, scheduling_strategy=here)  # type: ignore[attr-defined]
        self._actor = options.remote(self._checkpoints)

    def close(self) -> None:
        """Take it down."""
        if self._actor is not None:
            ray.kill(self._actor)

    def stop_all(self) -> None:
        """Ask every worker to save and stop after its current epoch."""
        self._actor.raise_flag.remote()

    def saved(self, key: str, checkpoint: str) -> None:
        """Note a run's newest checkpoint."""
        self._actor.add.remote(key, checkpoint)


class ControlReader:
    """A worker's side. The board may be gone: then a run goes on, it is worth more."""

    def __init__(self, name: str) -> None:
        self._name = name

    def stopping(self) -> bool:
        """Whether this worker shall save and stop."""
        return bool(self._asked("flag"))

    def checkpoints(self, key: str) -> list[str] | None:
        """Where a run can continue from, newest first; None if that cannot be known."""
        found: list[str] | None = self._asked("of", key)
        return found

    def _asked(self, method: str, *arguments: str) -> Any:
        try:
            return ray.get(getattr(ray.get_actor(self._name), method).remote(*arguments))
        except (ray.exceptions.RayError, ValueError):  # Ray's word for an actor it does not know
            return None
