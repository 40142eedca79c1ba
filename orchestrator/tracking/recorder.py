"""Sends runs to MLflow while they train."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable

from orchestrator.errors import StoreError, TrackingError
from orchestrator.scheduling.events import Event, Finished, Saved, Started
from orchestrator.store import Store
from orchestrator.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

RETRY_S = 60.0  # between two tries of a server that failed


class TrackingRecorder:
    """Sends runs to MLflow from a thread as they move; failures are noted, not raised."""

    def __init__(
        self,
        tracker: Tracker,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        *,
        behind: Iterable[str] = (),
    ) -> None:
        """`clock` counts seconds: a server that failed is tried again every `RETRY_S`.

        Runs with keys in `behind` are sent first, whether they move or not.
        """
        self.tracker, self.store, self._clock = tracker, store, clock
        self.problem: str | None = None
        self._last: Callable[[], None] = lambda: None
        self._moved: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for key in behind:
            self._moved.put(key)
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Note that there is something to send of the event's run."""
        if isinstance(event, Started | Saved | Finished):  # an epoch alone waits for a checkpoint
            self._moved.put(event.run.key)

    def close(self, timeout_s: float, last: Callable[[], None] = lambda: None) -> str | None:
        """Send what is left, then do `last`; returns what went wrong, if anything.

        Takes `timeout_s` at most, and leaves the rest to the thread.
        """
        self._last = last
        self._moved.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return f"MLflow at {self.tracker.uri} is slow: not everything is there yet"
        return self.problem

    def _run(self) -> None:
        pending: set[str] = set()
        retry_at = self._clock()
        open_ = True
        while open_:
            key = self._moved.get()
            while key is not None:
                pending.add(key)
                if self._moved.empty():
                    break
                key = self._moved.get()
            open_ = key is not None
            if self.problem and open_ and self._clock() < retry_at:
                continue
            try:
                self.tracker.send(self.store, pending)
                if not open_:
                    self._last()
            except (TrackingError, StoreError) as error:
                self.problem, retry_at = str(error), self._clock() + RETRY_S
                logger.warning("%s", error)
            else:
                self.problem = None
                pending.clear()
