"""Writes what happens to runs into the store."""

import time
from collections.abc import Callable

from orchestrator.provenance import Provenance
from orchestrator.scheduling.events import EpochDone, Event, Finished, Placed, Saved, Started, Tick
from orchestrator.scheduling.storage import parent_location
from orchestrator.store import Checkpoint, Status, Store

BEAT_S = 5.0


class StoreRecorder:
    """Keeps the store true to the events; deletes checkpoints that newer ones replace."""

    def __init__(
        self,
        store: Store,
        provenances: dict[str, Provenance],
        discard: Callable[[str], None],
    ) -> None:
        """`provenances` by dataset; `discard` removes a folder of checkpoints."""
        self.store, self.provenances, self.discard = store, provenances, discard
        self._beaten = 0.0

    def __call__(self, event: Event) -> None:
        """Write the event; repeating one is harmless."""
        match event:
            case Started(run):
                self.store.start(run, self.provenances[run.train.data.name])
            case Placed(run, host, device, epoch):
                self.store.place(run.key, host, device, epoch)
            case EpochDone(run, epoch, values):
                for stale in self.store.record(run.key, epoch, values):
                    self.discard(stale.path)  # not its folder, which may be the one in use
            case Saved(run, checkpoint):
                self._drop(run.key, self.store.saved(run.key, checkpoint))
            case Finished(run, status, error, margins, certificate):
                self.store.finish(
                    run.key, status, error=error, margins=margins, certificate=certificate
                )
                if status in (Status.DONE, Status.UNSOUND):
                    self._drop(run.key, self.store.keep_checkpoints(run.key, 1))
            case Tick() if time.monotonic() - self._beaten > BEAT_S:
                self._beaten = time.monotonic()
                self.store.beat()

    def _drop(self, key: str, checkpoints: list[Checkpoint]) -> None:
        """Discard checkpoints, and with its last one an earlier invocation's whole folder.

        A driver killed while it saved leaves a checkpoint there that nobody noted.
        """
        kept = {
            parent_location(item.path) for run in self.store.runs([key]) for item in run.checkpoints
        }
        for checkpoint in checkpoints:
            folder = parent_location(checkpoint.path)
            self.discard(checkpoint.path if folder in kept else folder)
