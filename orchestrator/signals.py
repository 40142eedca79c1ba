"""Signals that come while something must not be left halfway."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)
NOTED = b"Stopping as soon as Ray has started; once more stops at once.\n"


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Inside the block the first SIGINT or SIGTERM is noted in the list; the second acts.

    Ray may hang for ever if its start is interrupted.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in STOPS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        os.write(2, NOTED)  # print may be interrupted in the middle of itself
        restore()

    for number in STOPS:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()
