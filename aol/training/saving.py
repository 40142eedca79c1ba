"""Saving the states of a run while it trains."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from torch import Tensor

from aol.errors import SavingError, first_line

LARGEST_SHARE = 0.02  # of the time, for saving at most
PATIENCE_S = 30.0  # for the state of a run that ends or stops
LONGEST_FAILURE_S = 900.0  # a run trains on for so long without a state that can be saved
RETRY_S = 2.0

State = dict[str, Any]
Saved = TypeVar("Saved")


class StateSaver(Generic[Saved]):
    """Writes the states of a trainer in a thread, one at a time.

    `write(state)` writes a state; `saved` receives what it returns, in the thread that trains. A
    state is saved every `every_s` seconds, or less often if saving would take more than
    `LARGEST_SHARE` of the time. Saving costs the time for which training waits and the processor
    time of the thread.

    If a state cannot be written (OSError), that is logged and training continues, because the next
    one may succeed. After `LONGEST_FAILURE_S` without success, SavingError is raised.
    """

    def __init__(
        self,
        write: Callable[[State], Saved],
        *,
        saved: Callable[[Saved], None],
        every_s: float,
        log: Callable[[str], None],
    ) -> None:
        self.seconds = 0.0  # from the start of the latest save to its end
        self._write, self._saved, self._every_s, self._log = write, saved, every_s, log
        self._cost_s = 0.0  # of the latest save
        self._started_at = time.monotonic()
        self._failing_since: float | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._writing: Future[tuple[Saved, float]] | None = None

    def step(self, state: Callable[[], State]) -> None:
        """Handle the end of an epoch: pass on a state that was written, save one if it is due."""
        if self._writing and self._writing.done():
            error, first = self._finish_writing(), self._failing_since
            if error and first and time.monotonic() - first > LONGEST_FAILURE_S:
                raise _saving_error(error) from error
        if not self._writing and self._due():
            self._start_writing(state)

    def finish(self, state: Callable[[], State]) -> None:
        """Save a state and wait for it. Raises: SavingError if that fails for `PATIENCE_S`."""
        if self._writing:
            self._finish_writing()
        end = time.monotonic() + PATIENCE_S
        self._start_writing(state)
        while error := self._finish_writing():
            if time.monotonic() >= end:
                raise _saving_error(error) from error
            time.sleep(RETRY_S)
            self._start_writing(state)

    def _due(self) -> bool:
        passed = time.monotonic() - self._started_at
        return passed >= self._every_s and self._cost_s <= LARGEST_SHARE * passed

    def _start_writing(self, state: Callable[[], State]) -> None:
        self._started_at = time.monotonic()
        self._writing = self._thread.submit(_timed, self._write, copy_state(state()))
        self._cost_s = time.monotonic() - self._started_at

    def _finish_writing(self) -> OSError | None:
        """Wait for the state that is being written; return the error if it cannot be."""
        assert self._writing is not None  # noqa: S101 - one was started
        waits_since, writing, self._writing = time.monotonic(), self._writing, None
        try:
            saved, cpu_s = writing.result()
        except OSError as error:
            self._failing_since = self._failing_since or time.monotonic()
            self._log(str(_saving_error(error)))
            return error
        finally:
            now = time.monotonic()
            self.seconds = now - self._started_at
            self._cost_s += now - waits_since
        self._cost_s += cpu_s
        self._failing_since = None
        self._saved(saved)
        return None


def _saving_error(error: OSError) -> SavingError:
    return SavingError(f"the state cannot be saved: {first_line(error)}")


def copy_state(state: Any) -> Any:
    """Return a copy of plain values and tensors, with the tensors on the CPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: copy_state(value) for key, value in state.items()}
    if isinstance(state, list):
        return [copy_state(value) for value in state]
    return state


def _timed(write: Callable[[State], Saved], state: State) -> tuple[Saved, float]:
    """Return what `write` returns, and the seconds of the processor that this thread used."""
    started = time.thread_time()
    return write(state), time.thread_time() - started
