"""Sending runs to MLflow while they train."""

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

RETRY_S = 60.0  # after a failure of the server
POLL_S = 0.1


class TrackingRecorder:
    """Sends runs to MLflow in a thread when they change; logs failures and does not raise them."""

    def __init__(
        self,
        tracker: Tracker,
        store: Store,
        clock: Callable[[], float] = time.monotonic,
        *,
        outdated: Iterable[str] = (),
    ) -> None:
        """`outdated` has the keys of runs to send first, whether they change or not.

        `clock` returns seconds; after a failure the server is tried again every `RETRY_S`.
        """
        self.tracker, self.store, self._clock = tracker, store, clock
        self.problem: str | None = None
        self._final_task: Callable[[], None] = lambda: None
        self._changed: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # keys; None at the end
        for key in outdated:
            self._changed.put(key)
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Queue the event's run if there is something to send."""
        if isinstance(event, Started | Saved | Finished):  # an epoch is final with its checkpoint
            self._changed.put(event.run.key)

    def close(
        self,
        timeout_s: float,
        final_task: Callable[[], None] = lambda: None,
        must_stop: Callable[[], bool] = lambda: False,
    ) -> str | None:
        """Send what is left, then call `final_task`; return what went wrong, if anything.

        After `timeout_s`, or when `must_stop` returns true, it returns although the thread is
        still busy.
        """
        self._final_task = final_task
        self._changed.put(None)
        end = time.monotonic() + timeout_s
        while self._thread.is_alive() and time.monotonic() < end and not must_stop():
            self._thread.join(min(timeout_s, POLL_S))
        if self._thread.is_alive():
            return f"MLflow at {self.tracker.name} is slow: it has not received everything yet"
        return self.problem

    def _run(self) -> None:
        pending: set[str] = set()
        retry_at = self._clock()
        closing = False
        while not closing:
            key = self._changed.get()
            while key is not None:
                pending.add(key)
                if self._changed.empty():
                    break
                key = self._changed.get()
            closing = key is None
            if self.problem and not closing and self._clock() < retry_at:
                continue
            try:
                self.tracker.send(self.store, pending)
                if closing:
                    self._final_task()
            except (TrackingError, StoreError) as error:
                self.problem, retry_at = str(error), self._clock() + RETRY_S
                logger.warning("%s", error)
            else:
                self.problem = None
                pending.clear()
