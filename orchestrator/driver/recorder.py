"""Recording the events of runs in the store."""

import logging
import time
from collections import deque
from collections.abc import Callable

from orchestrator.errors import StoreError, StoreLostError
from orchestrator.formatting import pluralize
from orchestrator.masking import mask_secrets
from orchestrator.provenance import Provenance
from orchestrator.scheduling.events import EpochDone, Event, Finished, Placed, Saved, Started, Tick
from orchestrator.scheduling.storage import parent_location
from orchestrator.store import Checkpoint, Status, Store

logger = logging.getLogger(__name__)

RETRY_S = 1.0
PATIENCE_S = 60.0  # after the last event


class StoreRecorder:
    """Writes events to the store and deletes checkpoints that are no longer kept.

    While the store cannot be written, events wait in their order, and no checkpoint is deleted.
    When another driver has taken over the store, all further events are dropped: that driver
    trains the runs again from the last checkpoints in the store.
    """

    def __init__(
        self,
        store: Store,
        provenances: dict[str, Provenance],
        discard: Callable[[str], None],
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """`provenances` are by dataset; `discard` deletes a folder of checkpoints."""
        self.store, self.provenances, self.discard, self.warn = store, provenances, discard, warn
        self._waiting: deque[Event] = deque()
        self._failure: StoreError | None = None
        self._lost: StoreLostError | None = None
        self._last_try = 0.0

    def __call__(self, event: Event) -> None:
        """Write the event, now or when the store can be written; this is idempotent.

        Raises: StoreLostError once, when another driver has taken over the store.
        """
        if self._lost:
            return
        try:
            if not isinstance(event, Tick):
                self._waiting.append(event)
            if not self._failure or time.monotonic() - self._last_try > RETRY_S:
                self._write()
        except StoreLostError as error:
            self._lost = error
            raise

    def close(
        self, patience_s: float = PATIENCE_S, must_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Write what waits.

        Raises: StoreError if that fails for so many seconds, or until `must_stop` returns true, or
        if the store was lost.
        """
        end = time.monotonic() + patience_s
        while self._failure and not self._lost and time.monotonic() < end and not must_stop():
            time.sleep(min(RETRY_S, patience_s))
            self._write()
        if self._lost:
            raise self._lost
        if self._failure:
            waiting = pluralize(len(self._waiting), "event was", "events were")
            raise StoreError(
                f"{self._failure}; {waiting} not written, so repeat the command when the store can "
                "be written: it continues from the last checkpoints before them"
            ) from self._failure

    def _write(self) -> None:
        """Write the events that wait, up to the first that fails."""
        self._last_try = time.monotonic()
        while self._waiting:
            try:
                self._record(self._waiting[0])
            except StoreLostError:
                raise
            except StoreError as error:
                if not self._failure:
                    self.warn(f"The store cannot be written, so events wait: {error}")
                self._failure = error
                return
            except Exception:
                self._waiting.popleft()
                raise
            self._waiting.popleft()
        if self._failure:
            self._failure = None
            self.warn("The store can be written again, and is complete.")

    def _record(self, event: Event) -> None:
        match event:
            case Started(run):
                self.store.start(run, self.provenances[run.train.data.name])
            case Placed(run, host, device, epoch, origin):
                self.store.set_placement(run.key, host, device, epoch, origin)
            case EpochDone(run, epoch, values):
                for stale in self.store.record(run.key, epoch, values):
                    self.discard(stale.path)  # but not its folder, which may be in use
            case Saved(run, checkpoint):
                self._discard_checkpoints(run.key, self.store.add_checkpoint(run.key, checkpoint))
            case Finished(run, status, error, margins, certificate):
                self.store.finish(
                    run.key,
                    status,
                    error=error and mask_secrets(error),
                    margins=margins,
                    certificate=certificate,
                )
                if status in (Status.DONE, Status.UNSOUND) and self._is_complete(run.key):
                    self._discard_checkpoints(run.key, self.store.keep_checkpoints(run.key, 1))

    def _is_complete(self, key: str) -> bool:
        """Return whether no epoch is missing, so that earlier checkpoints are not needed."""
        (run,) = self.store.runs([key])
        return run.recorded == run.epoch

    def _discard_checkpoints(self, key: str, checkpoints: list[Checkpoint]) -> None:
        """Discard checkpoints, and the folder of an earlier invocation with its last checkpoint.

        A driver killed while it saved leaves a checkpoint there that is not in the store.
        """
        if not checkpoints:
            return
        kept = {
            parent_location(item.path) for run in self.store.runs([key]) for item in run.checkpoints
        }
        for checkpoint in checkpoints:
            folder = parent_location(checkpoint.path)
            self.discard(checkpoint.path if folder in kept else folder)
