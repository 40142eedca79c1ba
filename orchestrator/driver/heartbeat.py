"""The heartbeat of the driver, which neither training nor Ray's start delays."""

import logging
import threading
from typing import Self

from orchestrator.errors import StoreError, StoreLostError
from orchestrator.scheduling.events import Event
from orchestrator.store import HEARTBEAT_S, Store

logger = logging.getLogger(__name__)


class Heartbeat:
    """Renews the heartbeat of a store in a thread, inside a `with` block.

    It is also a recorder, and so stops training when another driver takes over the store.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lost: StoreLostError | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(HEARTBEAT_S)  # a heartbeat may wait for a database that does not answer

    def __call__(self, event: Event) -> None:
        """Raise StoreLostError if another driver took over the store."""
        if self._lost:
            raise self._lost

    def _run(self) -> None:
        while not self._stopped.wait(HEARTBEAT_S):
            try:
                self._store.heartbeat()
            except StoreLostError as error:
                self._lost = error
                return
            except StoreError as error:  # the next one may succeed
                logger.info("no heartbeat: %s", error)
