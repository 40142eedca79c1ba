"""Converting Tune's callbacks to events for the recorders, in the driver."""

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

STOPPING = "Stopping: each run saves after its current epoch. Interrupt again to stop at once."


class TrialEvents(tune.Callback):
    """Sends events to the recorders. A failing recorder is logged and does not stop training."""

    def __init__(
        self,
        runs: Sequence[RunSpec],
        recorders: Sequence[Recorder],
        *,
        control: ControlActor,
        storage: str,
        fail_fast: bool = False,
        warn: Callable[[str], None],
        interrupted: Callable[[str], None],
    ) -> None:
        """Send messages to `warn`, and those of the signal handler to `interrupted`."""
        self.runs = {run.key: run for run in runs}
        self.recorders, self.control, self.storage = list(recorders), control, storage
        self.fail_fast, self.warn, self.interrupted = fail_fast, warn, interrupted
        self.unfinished = dict(self.runs)
        self.stopping = False
        self.signal: int | None = None
        self.failed_recorders: set[str] = set()
        self._stop_requested = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks to a file that is never read again."""
        return {}

    def emit(self, event: Event) -> None:
        """Send an event to every recorder."""
        for recorder in self.recorders:
            try:
                recorder(event)
            except Exception:
                name = type(recorder).__name__
                logger.exception("%s failed on %s", name, type(event).__name__)
                if name not in self.failed_recorders:
                    self.failed_recorders.add(name)
                    self.warn(f"{name} failed; see driver.log in the logs folder")

    @contextmanager
    def handle_signals(self) -> Iterator[None]:
        """Save and stop at the first SIGINT or SIGTERM in the block, stop at once at the second."""
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
        """Report runs without an end as interrupted; stop the control actor."""
        for run in list(self.unfinished.values()):
            self._finish(Finished(run, Status.INTERRUPTED))
        self.control.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            os.kill(os.getpid(), signal.SIGUSR1)  # makes Tune stop without waiting
            return
        self.signal, self.stopping = number, True
        self.interrupted(STOPPING)

    def _finish(self, event: Finished) -> None:
        if self.unfinished.pop(event.run.key, None):
            self.emit(event)

    # Callbacks of Tune

    def setup(self, *_: Any, **__: Any) -> None:
        """Start the control actor before the first worker."""
        self.control.start()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Emit that a trial got its resources."""
        self.emit(Started(self.runs[trial_key(trial)]))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """Emit the event for a worker's result."""
        run = self.runs[trial_key(trial)]
        match result.get("kind"):
            case "placed":
                self.emit(Placed(run, result["host"], result["device"], result["epoch"]))
            case "epoch":
                self.emit(EpochDone(run, result["epoch"], result["values"]))
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
        """Emit that a checkpoint is in the storage."""
        try:
            epoch = int(checkpoint.get_metadata()["epoch"])
            path = checkpoint_location(checkpoint, self.storage)
        except Exception:
            logger.exception("checkpoint %s cannot be read", checkpoint)
            return
        run = self.runs[trial_key(trial)]
        self.control.add_checkpoint(run.key, path)
        self.emit(Saved(run, Checkpoint(epoch, path)))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Emit that a run failed because its worker was lost too often."""
        cause = trial.get_error()
        text = f"{type(cause).__name__}: {cause}" if cause else "its worker was lost"
        run = self.runs[trial_key(trial)]
        self._finish(Finished(run, Status.FAILED, error=text))
        self.stopping = self.stopping or self.fail_fast

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Emit a tick and handle stop requests, about ten times a second."""
        self.emit(Tick())
        if self.stopping and not self._stop_requested:
            self._stop_requested = True
            self.control.request_stop()
        if self.stopping and not any(trial.status == Trial.RUNNING for trial in trials):
            os.kill(os.getpid(), signal.SIGUSR1)


def checkpoint_location(checkpoint: tune.Checkpoint, storage: str) -> str:
    """Return the path or URI by which a later invocation can open a checkpoint."""
    root = tune.Checkpoint(storage).path
    return join_location(storage, str(PurePosixPath(checkpoint.path).relative_to(root)))


def trial_key(trial: Trial) -> str:
    """Return the key of the run that a trial trains."""
    return str(trial.config["job"]["key"])
