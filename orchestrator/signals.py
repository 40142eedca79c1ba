"""The signals that stop a program, owned by one object from its first second to its last.

An exception raised by a handler can break anything, and Python ignores it in some places. While
runs train, a signal is therefore only recorded, and the code calls `check` where stopping is safe.
"""

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
REPEAT_S = 0.5  # `timeout` signals a process and then its group, which is one request to stop
SAVING_S = 15.0
LIMIT_S = 28.0  # many schedulers kill a process 30 s after the signal
POLL_S = 0.1
STOPPING = (
    f"Stopping: each run saves after its current epoch, if that ends within {SAVING_S:.0f} s. "
    "Interrupt again to stop at once."
)
STOPPING_AT_ONCE = "Stopping at once."

T = TypeVar("T")


class Stopped(BaseException):
    """Raised after SIGINT or SIGTERM, where stopping is safe; not an error."""


class StopSignals:
    """The first SIGINT or SIGTERM that this process received, and how urgently it must stop."""

    def __init__(self, end_process: Callable[[], None] | None = None) -> None:
        """`end_process` is called if the process still runs `LIMIT_S` after the signal."""
        self.number: int | None = None
        self._end_process = end_process
        self._received = 0.0
        self._announced = self._repeated = self._deferring = False

    @property
    def urgent(self) -> bool:
        """Return whether to stop without saving: after a second signal, or `SAVING_S` seconds."""
        late = self.number is not None and time.monotonic() - self._received > SAVING_S
        return self._repeated or late

    def check(self) -> None:
        """Raise Stopped if there was a signal."""
        if self.number is not None:
            raise Stopped

    def interruptible(self, work: Callable[[], T]) -> T:
        """Return the result of `work`; at a signal raise Stopped without waiting for its end.

        The work runs in a thread, since a handler that raises nothing cannot end a blocking call.
        """
        result: Future[T] = Future()

        def complete() -> None:
            try:
                result.set_result(work())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=complete, daemon=True).start()
        while not wait([result], POLL_S).done:
            self.check()
        return result.result()

    @contextmanager
    def deferred(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Record signals in the block and raise nothing; send a message for each to `announce`.

        A thread receives the signals, so that they are announced even while the main thread is
        blocked outside Python. Only the main thread can set this up; in others nothing is done.
        """
        if not in_main_thread():
            yield
            return
        self._deferring = True  # before anything that a raised exception would leave open
        try:
            with self._watched(announce):
                yield
        finally:
            self._deferring = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; raise Stopped at the first one unless signals are deferred."""
        first = self.number is None
        self._record(number)
        if first and not self._deferring:
            raise Stopped

    def _record(self, number: int) -> None:
        if self.number is None:
            self._received = time.monotonic()
            self.number = number

    @contextmanager
    def _watched(self, announce: Callable[[str], None]) -> Iterator[None]:
        """Let a thread receive the signals in the block."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        watcher = threading.Thread(target=self._watch, args=(reader, announce), daemon=True)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            writer.close()  # which ends the thread
            watcher.join()
            reader.close()

    def _watch(self, reader: socket.socket, announce: Callable[[str], None]) -> None:
        """Announce signals until the other end of the socket is closed."""
        if self.number is not None:  # it arrived before this thread could receive it
            self._announce(self.number, announce)
            reader.settimeout(LIMIT_S)
        try:
            while received := reader.recv(1):
                if received[0] in STOP_SIGNALS:
                    self._announce(received[0], announce)
                if self._end_process and self.number is not None:
                    left = self._received + LIMIT_S - time.monotonic()
                    reader.settimeout(max(left, POLL_S))
        except TimeoutError:
            if self._end_process:
                self._end_process()

    def _announce(self, number: int, announce: Callable[[str], None]) -> None:
        self._record(number)
        signal.alarm(0)  # by which Ray's handler in C++ aborts some seconds after a signal
        if not self._announced:
            self._announced = True
            announce(STOPPING)
        elif not self._repeated and time.monotonic() - self._received > REPEAT_S:
            self._repeated = True
            announce(STOPPING_AT_ONCE)


_owners: list[StopSignals] = []


@contextmanager
def stop_signals(end_process: Callable[[], None] | None = None) -> Iterator[StopSignals]:
    """Own SIGINT and SIGTERM in the block; a block inside another one has the same object.

    Pass `end_process` if the process ends with the block: after a signal, later ones are ignored
    to its end. Otherwise the handlers from before are restored, and receive the signal if Stopped
    ends the block. Only the main thread can own signals; in others none is recorded.
    """
    if _owners:
        yield _owners[0]
        return
    stop = StopSignals(end_process)
    if not in_main_thread():
        yield stop
        return
    _owners.append(stop)
    before = {number: signal.signal(number, stop.handle) for number in STOP_SIGNALS}

    def restore() -> None:
        if not (end_process and stop.number):
            for number, handler in before.items():
                signal.signal(number, handler)

    try:
        yield stop
    except Stopped:
        restore()
        signal.raise_signal(stop.number or signal.SIGINT)
        raise
    finally:
        _owners.clear()
        restore()


def in_main_thread() -> bool:
    """Return whether this thread is the one that can handle signals."""
    return threading.current_thread() is threading.main_thread()
