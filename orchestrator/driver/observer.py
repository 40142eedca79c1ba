"""The channel from an invocation to whoever watches it: messages, the plan, progress."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from orchestrator.planning.plan import PlannedRun
from orchestrator.scheduling.events import Event, Recorder


class Observer(Protocol):
    """Receives the progress of one invocation. The command line has one that prints."""

    def message(self, text: str, *, important: bool = False) -> None:
        """Take a message for people; an important one is shown even if they want quiet."""

    def planned(self, plan: Sequence[PlannedRun], profile: str, store: str) -> None:
        """Take the plan of a profile before its runs start, and the location of the store."""

    def progress(self, stage: str, share: float) -> None:
        """Take how much of a stage of fetching images is done, from 0 to 1."""

    def watch(
        self, work: Mapping[str, float], log_folder: Path
    ) -> AbstractContextManager[Recorder]:
        """Return a recorder of the events while runs train.

        `work` is what is left to do of each run, by key, in any unit.
        """


class SilentObserver:
    """Ignores everything: the default when `run` is called from Python."""

    def message(self, text: str, *, important: bool = False) -> None:
        """Ignore the message."""

    def planned(self, plan: Sequence[PlannedRun], profile: str, store: str) -> None:
        """Ignore the plan."""

    def progress(self, stage: str, share: float) -> None:
        """Ignore the progress."""

    def watch(
        self, work: Mapping[str, float], log_folder: Path
    ) -> AbstractContextManager[Recorder]:
        """Return a recorder that ignores every event."""
        return nullcontext(_ignore)


def _ignore(event: Event) -> None:
    """Ignore an event."""
