import os
import signal

from orchestrator.errors import StoreError, StoreLostError
from orchestrator.scheduling.callback import LOST, STOPPING, TrialEvents
from orchestrator.scheduling.events import Tick


def test_a_signal_is_a_message_and_prints_nothing(capfd):
    said, warned = [], []
    events = TrialEvents(
        [], [], control=None, storage="", warn=warned.append, interrupted=said.append
    )
    with events.handle_signals():
        os.kill(os.getpid(), signal.SIGINT)

    assert (events.signal, events.stopping) == (signal.SIGINT, True)
    assert (said, warned) == ([STOPPING], [])
    assert capfd.readouterr() == ("", "")


def test_a_recorder_that_lost_its_store_stops_training_and_a_failing_one_does_not():
    received, warned = [], []

    def fail(event):
        raise StoreError("no disk")

    def lose(event):
        raise StoreLostError("another driver")

    events = TrialEvents(
        [], [fail], control=None, storage="", warn=warned.append, interrupted=print
    )
    events.emit(Tick(()))
    before = events.stopping
    events.recorders = [lose, received.append]
    events.emit(Tick(()))

    assert (before, events.stopping) == (False, True)
    assert warned == ["function failed; see driver.log in the logs folder", LOST]
    assert received == [Tick(())]
