"""The interface that receives the messages, the plan and the progress of an invocation."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

from orchestrator.planning.plan import PlannedRun
from orchestrator.scheduling.events import Event, Recorder


class Observer(Protocol):
    """Receives the progress of one invocation; that of the command line prints it."""

    def message(self, text: str, *, important: bool = False) -> None:
        """Receive a message; an important one is shown even with `--quiet`."""

    def interrupted(self, text: str) -> None:
        """Receive a message about a signal, in another thread than all other messages."""

    def planned(self, plan: Sequence[PlannedRun], profile: str, store: str) -> None:
        """Receive the plan of a profile before its runs start, and the location of the store."""

    def progress(self, stage: str, share: float) -> None:
        """Receive the completed share of a stage of fetching images, from 0 to 1."""

    def watch(
        self, work: Mapping[str, float], log_folder: Path
    ) -> AbstractContextManager[Recorder]:
        """Return a recorder of the events while runs train.

        `work` is the remaining work of each run, by key, in any unit.
        """


class SilentObserver:
    """Ignores everything: the default when `run` is called from Python."""

    def message(self, text: str, *, important: bool = False) -> None:
        """Ignore the message."""

    def interrupted(self, text: str) -> None:
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
