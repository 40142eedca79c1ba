"""Recording the events of runs in the store."""

import time
from collections.abc import Callable

from orchestrator.provenance import Provenance
from orchestrator.scheduling.events import EpochDone, Event, Finished, Placed, Saved, Started, Tick
from orchestrator.scheduling.storage import parent_location
from orchestrator.store import Checkpoint, Status, Store

HEARTBEAT_S = 5.0


class StoreRecorder:
    """Writes events to the store and deletes checkpoints that are no longer kept."""

    def __init__(
        self,
        store: Store,
        provenances: dict[str, Provenance],
        discard: Callable[[str], None],
    ) -> None:
        """`provenances` are by dataset; `discard` deletes a folder of checkpoints."""
        self.store, self.provenances, self.discard = store, provenances, discard
        self._last_heartbeat = 0.0

    def __call__(self, event: Event) -> None:
        """Write the event; this is idempotent."""
        match event:
            case Started(run):
                self.store.start(run, self.provenances[run.train.data.name])
            case Placed(run, host, device, epoch):
                self.store.set_placement(run.key, host, device, epoch)
            case EpochDone(run, epoch, values):
                for stale in self.store.record(run.key, epoch, values):
                    self.discard(stale.path)  # but not its folder, which may be in use
            case Saved(run, checkpoint):
                self._discard_checkpoints(run.key, self.store.add_checkpoint(run.key, checkpoint))
            case Finished(run, status, error, margins, certificate):
                self.store.finish(
                    run.key, status, error=error, margins=margins, certificate=certificate
                )
                if status in (Status.DONE, Status.UNSOUND):
                    self._discard_checkpoints(run.key, self.store.keep_checkpoints(run.key, 1))
            case Tick() if time.monotonic() - self._last_heartbeat > HEARTBEAT_S:
                self._last_heartbeat = time.monotonic()
                self.store.heartbeat()

    def _discard_checkpoints(self, key: str, checkpoints: list[Checkpoint]) -> None:
        """Discard checkpoints, and the folder of an earlier invocation with its last checkpoint.

        A driver killed while it saved leaves a checkpoint there that is not in the store.
        """
        kept = {
            parent_location(item.path) for run in self.store.runs([key]) for item in run.checkpoints
        }
        for checkpoint in checkpoints:
            folder = parent_location(checkpoint.path)
            self.discard(checkpoint.path if folder in kept else folder)
