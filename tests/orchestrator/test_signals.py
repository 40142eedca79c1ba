"""
The owner of SIGINT and SIGTERM, in this process and in small programs of their own.
"""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager

import pytest

from orchestrator import signals
from orchestrator.signals import STOPPING, STOPPING_AT_ONCE, Stopped, stop_signals
from tests.support.shell import PROJECT

BOTH = [signal.SIGINT, signal.SIGTERM]


def wait_until(condition):
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@contextmanager
def earlier_handler():
    """
    Yield a list that receives the signals for the handler from before.
    """
    received = []
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in BOTH
    }
    yield received
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_deferred_signal_is_announced_and_raises_only_at_a_check(number):
    announced = []
    with stop_signals() as stop:
        with stop.deferred(announced.append):
            stop.check()
            os.kill(os.getpid(), number)
            wait_until(lambda: announced)
        with pytest.raises(Stopped):
            stop.check()

    assert (announced, stop.number, stop.urgent) == ([STOPPING], number, False)


@pytest.mark.parametrize("number", BOTH)
def test_without_deferring_the_first_signal_raises_and_later_ones_do_not(number):
    with stop_signals() as stop:
        with pytest.raises(Stopped):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)

        assert stop.number == number


def test_a_signal_to_process_and_group_is_one_and_a_later_one_is_urgent(monkeypatch):
    announced = []
    with stop_signals() as stop, stop.deferred(announced.append):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: announced)
        os.kill(os.getpid(), signal.SIGTERM)
        assert not stop.urgent
        monkeypatch.setattr(signals, "REPEAT_S", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: stop.urgent)

    assert (announced, stop.number) == ([STOPPING, STOPPING_AT_ONCE], signal.SIGTERM)


def test_a_signal_becomes_urgent_when_the_time_to_save_is_over(monkeypatch):
    monkeypatch.setattr(signals, "SAVING_S", 0.0)
    with stop_signals() as stop, stop.deferred(lambda text: None):
        assert not stop.urgent
        os.kill(os.getpid(), signal.SIGTERM)

        wait_until(lambda: stop.urgent)


def test_no_signal_is_lost_where_deferring_starts_and_ends():
    """
    Blocks follow each other without a pause while another thread sends the signal.
    """

    def defer_until_stopped(stop, sender):
        sender.start()
        while True:
            with stop.deferred(lambda text: None):
                pass
            stop.check()

    for _ in range(100):
        with earlier_handler() as received, stop_signals() as stop:
            sender = threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGTERM))
            with pytest.raises(Stopped):
                defer_until_stopped(stop, sender)
            sender.join()
        assert (stop.number, received) == (signal.SIGTERM, [])


def test_a_block_inside_another_one_has_the_same_owner():
    with stop_signals() as outer, stop_signals() as inner:
        assert inner is outer


def test_a_signal_that_ends_the_block_goes_to_the_handler_from_before():
    with earlier_handler() as received, pytest.raises(Stopped), stop_signals():
        signal.raise_signal(signal.SIGTERM)

    assert received == [signal.SIGTERM]


def test_in_another_thread_the_handlers_stay():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def use():
        with stop_signals() as stop, stop.deferred(seen.append):
            seen.extend([stop.number, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()

    assert seen == [None, before]


def test_interruptible_work_has_its_result_and_its_error():
    with stop_signals() as stop:
        assert stop.interruptible(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            stop.interruptible(lambda: 1 // 0)


def test_a_signal_ends_the_wait_for_blocked_work():
    ending = threading.Event()
    with stop_signals() as stop, stop.deferred(lambda text: None):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped):
            stop.interruptible(ending.wait)
    ending.set()


def test_a_process_that_hangs_after_a_signal_ends_at_the_limit():
    """
    The main thread is blocked outside Python, where no handler of Python runs.
    """
    code = """
        import ctypes, os
        from orchestrator import signals
        signals.LIMIT_S = 0.2
        with signals.stop_signals(lambda: os._exit(128 + stop.number)) as stop:
            with stop.deferred(lambda text: print(text, flush=True)):
                print("ready", flush=True)
                while True:
                    ctypes.CDLL(None).sleep(1000)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=60)

    assert (out, process.returncode) == (f"{STOPPING}\n", 143)
