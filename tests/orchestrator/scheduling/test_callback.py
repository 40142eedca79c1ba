import pickle
import signal
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from orchestrator.errors import StoreError, StoreLostError
from orchestrator.scheduling.callback import LOST, Ending, TrialEvents
from orchestrator.scheduling.control import _ControlState
from orchestrator.scheduling.events import Finished, Saved, Tick
from orchestrator.scheduling.storage import RunStorage
from orchestrator.signals import StopSignals
from orchestrator.store import Status


class Control:
    """
    The state of the control actor in this process.
    """

    def __init__(self, *keys):
        state = _ControlState.__ray_metadata__.modified_class
        self.state = state({key: [] for key in keys})
        self.add_checkpoint = self.state.add_checkpoint


@pytest.fixture
def trial(make_run):
    """
    Return a trial of Tune with a function that passes it a result as Tune does, and the events.
    """
    run, recorded = make_run(7), []
    trial = Trial("train", config={"job": {"key": run.key}}, stub=True)
    control = Control(run.key)
    events = TrialEvents(
        [run], [recorded.append], control=control, stop=StopSignals(), reasons={}, warn=print
    )
    count = iter(range(1, 1_000_000))

    def report(**result):
        result |= {"training_iteration": next(count), "time_total_s": 1.0}
        trial.update_last_result(result)
        events.on_trial_result(0, [trial], trial, result)
        return recorded

    trial.report, trial.events, trial.control = report, events, control
    return trial


def test_the_state_of_tune_and_of_the_driver_stays_the_same_size(trial):
    def save(first, last):
        for epoch in range(first, last + 1):
            trial.report(kind="epoch", epoch=epoch, values={"accuracy": 0.5})
            trial.report(kind="saved", epoch=epoch, path=f"/storage/run/checkpoint_{epoch:06d}")
        state, metadata = trial.get_json_state()
        driver = pickle.dumps((vars(trial.control.state), trial.events.unfinished))
        return len(state), len(metadata), len(driver)

    few, many = save(100_001, 100_100), save(100_101, 110_000)

    assert [abs(after - before) < 100 for before, after in zip(few, many, strict=True)] == [
        True
    ] * 3
    assert few[1] < 20_000


def test_a_saved_state_starts_the_count_of_retries_anew(trial):
    trial.run_metadata.num_failures = 2
    trial.report(kind="epoch", epoch=4, values={})
    assert trial.num_failures == 2
    (_, saved) = trial.report(kind="saved", epoch=4, path="/storage/x")

    assert isinstance(saved, Saved)
    assert trial.num_failures == 0


def test_the_margins_are_read_from_the_storage(trial, tmp_path):
    path = RunStorage(str(tmp_path)).save_result({"margins": "AACAPw==", "certificate": {"a": 1}})
    (ended,) = trial.report(kind="done", error=None, path=path)

    assert (ended.status, ended.margins, ended.certificate) == (
        Status.DONE,
        b"\0\0\x80?",
        {"a": 1},
    )


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"margins": "%", "certificate": {}}'])
def test_a_run_whose_result_cannot_be_read_is_interrupted(trial, tmp_path, content):
    file = tmp_path / "result.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    (ended,) = trial.report(kind="done", error=None, path=str(file))

    assert isinstance(ended, Finished)
    assert ended.status is Status.INTERRUPTED
    assert ended.error.startswith(f"its result cannot be read from {file}: ")


@pytest.mark.parametrize(
    ("number", "urgent", "status", "expected"),
    [
        (None, False, Trial.RUNNING, (False, False)),
        (signal.SIGTERM, False, Trial.RUNNING, (True, False)),
        (signal.SIGTERM, False, Trial.TERMINATED, (True, True)),
        (signal.SIGTERM, True, Trial.RUNNING, (True, True)),
    ],
)
def test_a_signal_stops_trials_when_they_have_saved_or_if_it_is_urgent(
    trial, number, urgent, status, expected
):
    stop = SimpleNamespace(number=number, urgent=urgent)
    requested = []
    control = SimpleNamespace(request_stop=lambda: requested.append(True))
    events = TrialEvents([], [], control=control, stop=stop, reasons={}, warn=print)
    trial.status = status
    for step in range(3):
        events.on_step_end(step, [trial])

    assert (requested == [True], Ending(events).stop_all()) == expected


def test_a_recorder_that_lost_its_store_stops_training_and_a_failing_one_does_not():
    received, warned = [], []

    def fail(event):
        raise StoreError("no disk")

    def lose(event):
        raise StoreLostError("another driver")

    events = TrialEvents(
        [], [fail], control=None, stop=StopSignals(), reasons={}, warn=warned.append
    )
    events.emit(Tick())
    before = events.stopping
    events.recorders = [lose, received.append]
    events.emit(Tick())

    assert (before, events.stopping) == (False, True)
    assert warned == ["function failed; see driver.log in the logs folder", LOST]
    assert received == [Tick()]
