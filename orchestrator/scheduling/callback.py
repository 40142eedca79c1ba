"""Converting Tune's callbacks to events for the recorders, in the driver."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from orchestrator.errors import StoreLostError
from orchestrator.scheduling.control import ControlActor
from orchestrator.scheduling.events import (
    EpochDone,
    Event,
    Finished,
    Recorder,
    Saved,
    Started,
    Tick,
    finished_event,
    placed_event,
)
from orchestrator.signals import StopSignals
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Checkpoint, Status

logger = logging.getLogger(__name__)

LOST = "Stopping: another driver took over the store. Each run saves after its current epoch."


class TrialEvents(tune.Callback):
    """Sends events to the recorders.

    A failing recorder is logged and does not stop training, unless another driver took over the
    store: both would train the same runs.
    """

    def __init__(
        self,
        runs: Sequence[RunSpec],
        recorders: Sequence[Recorder],
        *,
        control: ControlActor,
        fail_fast: bool = False,
        stop: StopSignals,
        reasons: Mapping[str, str],
        warn: Callable[[str], None],
    ) -> None:
        """Send messages to `warn`. `reasons` has the reason of a run's last failure, by key."""
        self.runs = {run.key: run for run in runs}
        self.recorders, self.control = list(recorders), control
        self.fail_fast, self.stop, self.warn, self.reasons = fail_fast, stop, warn, reasons
        self.unfinished = dict(self.runs)
        self.stopping = self.stopped = False
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
            except StoreLostError:
                if not self.stopping:
                    self.warn(LOST)
                self.stopping = True
            except Exception:
                name = type(recorder).__name__
                logger.exception("%s failed on %s", name, type(event).__name__)
                if name not in self.failed_recorders:
                    self.failed_recorders.add(name)
                    self.warn(f"{name} failed; see driver.log in the logs folder")

    def close(self) -> None:
        """Report runs without an end as interrupted; stop the control actor."""
        for run in list(self.unfinished.values()):
            self._finish(Finished(run, Status.INTERRUPTED))
        self.control.close()

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
                self.emit(placed_event(run, result))
            case "epoch":
                self.emit(EpochDone(run, result["epoch"], result["values"]))
            case "saved":
                self.control.add_checkpoint(run.key, result["path"])
                self.emit(Saved(run, Checkpoint(result["epoch"], result["path"])))
                if run.key not in self.reasons:  # a run that filled the memory has one retry
                    trial.run_metadata.num_failures = 0  # others count theirs from here
            case "done" | "failed" | "diverged" | "unsound" | "interrupted" as kind:
                self._finish(finished_event(run, kind, result["error"], result.get("path")))
                failed = kind in ("failed", "diverged", "unsound")
                self.stopping = self.stopping or (failed and self.fail_fast)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """Emit that a run failed because its worker was lost too often."""
        cause = trial.get_error()
        text = f"{type(cause).__name__}: {cause}" if cause else "its worker was lost"
        run = self.runs[trial_key(trial)]
        self._finish(Finished(run, Status.FAILED, error=self.reasons.get(run.key, text)))
        self.stopping = self.stopping or self.fail_fast

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        """Emit a tick and handle stop requests, about ten times a second."""
        self.emit(Tick())
        self.stopping = self.stopping or self.stop.number is not None
        if self.stopping and not self._stop_requested:
            self._stop_requested = True
            self.control.request_stop()
        running = any(trial.status == Trial.RUNNING for trial in trials)
        self.stopped = self.stop.urgent or (self.stopping and not running)


class Ending(tune.Stopper):
    """Makes Tune stop all trials: when they have saved, or at once if a signal is urgent."""

    def __init__(self, events: TrialEvents) -> None:
        self.events = events

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: no result stops its trial."""
        return False

    def stop_all(self) -> bool:
        """Return whether every trial must stop now; Tune calls this several times a second."""
        return self.events.stopped


def trial_key(trial: Trial) -> str:
    """Return the key of the run that a trial trains."""
    return str(trial.config["job"]["key"])
