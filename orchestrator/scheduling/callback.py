"""Tune's callbacks as events for the recorders; runs on the driver."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from types import FrameType
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.scheduling.control import ControlActor
from orchestrator.scheduling.events import (
    EpochDone,
    Event,
    Finished,
    Placed,
    Recorder,
    Saved,
    Started,
    Tick,
    finished_event,
)
from orchestrator.scheduling.storage import join_location
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Checkpoint, Status

logger = logging.getLogger(__name__)

STOPPING = b"Stopping: each run saves after its current epoch. Interrupt again to stop at once.\n"


class TrialEvents(tune.Callback):
    """Turns Tune's callbacks into events. A recorder's failure is logged and stops nothing."""

    def __init__(
        self,
        runs: Sequence[RunSpec],
        recorders: Sequence[Recorder],
        *,
        board: ControlActor,
        storage: str,
        fail_fast: bool = False,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        self.runs = {run.key: run for run in runs}
        self.recorders, self.board, self.storage = list(recorders), board, storage
        self.fail_fast, self.warn = fail_fast, warn
        self.unfinished = dict(self.runs)
        self.active: dict[str, RunSpec] = {}
        self.stopping = False
        self.signal: int | None = None
        self.failing: set[str] = set()
        self._told_to_stop = False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes its callbacks to a file that is never read again."""
        return {}

    def tell(self, event: Event) -> None:
        """Hand an event to every recorder."""
        for recorder in self.recorders:
            try:
                recorder(event)
            except Exception:
                name = type(recorder).__name__
                logger.exception("%s failed on %s", name, type(event).__name__)
                if name not in self.failing:
                    self.failing.add(name)
                    self.warn(f"{name} fails, see driver.log in the logs")

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside the block the first SIGINT or SIGTERM saves and stops, the second just stops."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until Tune has its own handler
        for number in before:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Say that runs without an end were interrupted; take the board down."""
        for run in list(self.unfinished.values()):
            self._finish(Finished(run, Status.INTERRUPTED))
        self.board.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os.kill(os.getpid(), signal.SIGUSR1)  # Tune's own way to stop without waiting
            return
        self.signal, self.stopping = number, True
        os.write(2, STOPPING)  # print may be interrupted in the middle of itself

    def _finish(self, event: Finished) -> None:
        self.active.pop(event.run.key, None)
        if self.unfinished.pop(event.run.key, None):
            self.tell(event)

    # Tune's hooks

    def setup(self, *_: Any, **__: Any) -> None:
        """Tune is ready: the first worker will look for the board."""
        self.board.open()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A trial got its resources."""
        run = self.runs[trial_key(trial)]
        self.active[run.key] = run
        self.tell(Started(run))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """A worker reported."""
        run = self.runs[trial_key(trial)]
        match result.get("kind"):
            case "placed":
                self.tell(Placed(run, result["host"], result["device"], result["epoch"]))
            case "epoch":
                self.tell(EpochDone(run, result["epoch"], result["values"]))
            case "done":
                self._finish(finished_event(run, result))
            case "failed" | "diverged" | "unsound":
                self._finish(finished_event(run, result))
                self.stopping = self.stopping or self.fail_fast

    def on_checkpoint(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        checkpoint: tune.Checkpoint,
        **_: Any,
    ) -> None:
        """A checkpoint is in the storage."""
        try:
            epoch = int(checkpoint.get_metadata()["epoch"])
            place = location(checkpoint, self.storage)
        except Exception:
            logger.exception("checkpoint %s cannot be read back", checkpoint)
            return
        run = self.runs[trial_key(trial)]
        self.board.saved(run.key, place)
        self.tell(Saved(run, Checkpoint(epoch, place)))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A worker was lost more often than it may be."""
        cause = trial.get_error()
        text = f"{type(cause).__name__}: {cause}" if cause else "its worker was lost"
        run = self.runs[trial_key(trial)]
        self._finish(Finished(run, Status.FAILED, error=text))
        self.stopping = self.stopping or self.fail_fast

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Called about ten times a second."""
        self.tell(Tick(tuple(self.active.values())))
        if self.stopping and not self._told_to_stop:
            self._told_to_stop = True
            self.board.stop_all()
        if self.stopping and not any(trial.status == Trial.RUNNING for trial in trials):
            os.kill(os.getpid(), signal.SIGUSR1)


def location(checkpoint: tune.Checkpoint, storage: str) -> str:
    """Where in the storage a checkpoint lies, so that it can be opened again by this alone."""
    root = tune.Checkpoint(storage).path
    return join_location(storage, str(PurePosixPath(checkpoint.path).relative_to(root)))


def trial_key(trial: Trial) -> str:
    """The key of the run that a trial trains."""
    return str(trial.config["job"]["key"])
