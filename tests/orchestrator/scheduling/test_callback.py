import os
import signal

from orchestrator.scheduling.callback import STOPPING, TrialEvents


def test_a_signal_is_a_message_and_prints_nothing(capfd):
    said, warned = [], []
    events = TrialEvents(
        [], [], control=None, storage="", reasons={}, warn=warned.append, interrupted=said.append
    )
    with events.handle_signals():
        os.kill(os.getpid(), signal.SIGINT)

    assert (events.signal, events.stopping) == (signal.SIGINT, True)
    assert (said, warned) == ([STOPPING], [])
    assert capfd.readouterr() == ("", "")
