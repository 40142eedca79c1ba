"""
Saving states beside training, in a time that the tests set.
"""

import math
import threading
import time

import pytest
import torch

from aol.errors import SavingError
from aol.training import saving
from aol.training.saving import StateSaver, copy_state


class Disk:
    """
    Writes states: those of the epochs in `broken` fail, others wait until `room` is set.
    """

    def __init__(self, *broken):
        self.broken, self.written, self.room = broken, [], threading.Event()
        self.room.set()

    def write(self, state):
        self.room.wait(60)
        if state["epoch"] in self.broken:
            raise OSError(28, "No space left on device")
        self.written.append(state["epoch"])
        return state["epoch"]


@pytest.fixture
def clock(monkeypatch):
    """
    Return a list with the time in seconds; the processor's time of a thread does not pass.
    """
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.fixture
def make_saver():
    def make(disk, every_s=10.0):
        passed, log = [], []
        saver = StateSaver(disk.write, saved=passed.append, every_s=every_s, log=log.append)
        saver.passed, saver.log = passed, log
        return saver

    return make


def step(saver, epoch):
    saver.step(lambda: {"epoch": epoch})
    if saver._writing:
        saver._writing.exception()  # waits


def test_a_state_is_written_at_every_interval_and_passed_on_after_the_next_epoch(clock, make_saver):
    disk = Disk()
    saver = make_saver(disk)
    for epoch in range(1, 7):
        clock[0] += 5
        step(saver, epoch)

    assert disk.written == [2, 4, 6]
    assert saver.passed == [2, 4]


def test_training_does_not_wait_for_a_state_to_be_written(clock, make_saver):
    disk = Disk()
    disk.room.clear()
    saver = make_saver(disk)
    for epoch in (1, 2, 3):
        clock[0] += 10
        saver.step(lambda epoch=epoch: {"epoch": epoch})
    assert saver.passed == []
    disk.room.set()
    saver.finish(lambda: {"epoch": 4})

    assert saver.passed == [1, 4]


def test_saving_takes_at_most_two_percent_of_the_time(clock, make_saver, monkeypatch):
    """
    To copy a state takes three seconds, and to write it takes one second of the processor.
    """
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticks)))
    disk = Disk()
    saver = make_saver(disk)

    def state(epoch):
        clock[0] += 3
        return {"epoch": epoch}

    for epoch in range(1, 1001):
        clock[0] += 1
        saver.step(lambda epoch=epoch: state(epoch))
        if saver._writing:
            saver._writing.exception()

    assert 5 <= len(disk.written) <= 6
    assert 4 * len(disk.written) <= 0.02 * clock[0] + 4
    assert saver.log == []


def test_a_state_does_not_change_while_it_is_written(clock, make_saver):
    weights, seen = torch.zeros(3), []
    started = threading.Event()
    changed = threading.Event()

    class Reading(Disk):
        def write(self, state):
            started.set()
            changed.wait(60)
            seen.append(state["model"]["weight"].tolist())

    saver = make_saver(Reading(), every_s=0.0)
    saver.step(lambda: {"epoch": 1, "model": {"weight": weights}})
    started.wait(60)
    weights += 1
    changed.set()
    saver.finish(lambda: {"epoch": 2, "model": {"weight": weights}})

    assert seen == [[0.0] * 3, [1.0] * 3]


def test_a_state_that_cannot_be_written_is_logged_and_the_next_one_is_written(clock, make_saver):
    disk = Disk(1)
    saver = make_saver(disk)
    for epoch in (1, 2, 3):
        clock[0] += 10
        step(saver, epoch)

    assert disk.written == [2, 3]
    assert saver.log == ["the state cannot be saved: [Errno 28] No space left on device"]


def test_a_run_ends_if_no_state_can_be_written_for_long(clock, make_saver):
    saver = make_saver(Disk(*range(1000)))

    def train():
        for epoch in range(1, 1000):
            clock[0] += 10
            step(saver, epoch)

    with pytest.raises(SavingError, match=r"the state cannot be saved: .*No space left"):
        train()
    assert saving.LONGEST_FAILURE_S < clock[0] < saving.LONGEST_FAILURE_S + 50


def test_one_failure_between_distant_saves_does_not_end_a_run(clock, make_saver):
    """
    An epoch takes twice as long as a run may go on without a state that can be saved.
    """
    disk = Disk(2)
    saver = make_saver(disk)
    for epoch in range(1, 5):
        clock[0] += 2 * saving.LONGEST_FAILURE_S
        step(saver, epoch)

    assert disk.written == [1, 3, 4]


def test_the_last_state_is_tried_again_until_there_is_room(clock, make_saver):
    disk = Disk(7)
    saver = make_saver(disk)
    states = iter([{"epoch": 7}, {"epoch": 7}, {"epoch": 8}])
    saver.finish(lambda: next(states))

    assert disk.written == saver.passed == [8]


def test_the_last_state_is_an_error_if_it_cannot_be_written_for_long(clock, make_saver):
    saver = make_saver(Disk(7))
    with pytest.raises(SavingError, match="No space left on device"):
        saver.finish(lambda: {"epoch": 7})

    assert saving.PATIENCE_S <= clock[0] < saving.PATIENCE_S + 5


def test_an_error_of_the_program_is_passed_on(clock, make_saver):
    class Faulty(Disk):
        def write(self, state):
            raise KeyError("epoch")

    with pytest.raises(KeyError):
        make_saver(Faulty()).finish(lambda: {"epoch": 1})


def test_a_copy_shares_no_tensor_and_keeps_plain_values():
    state = {"groups": [{"lr": 0.5, "buffer": torch.ones(2)}], "none": None, "inf": math.inf}
    copy = copy_state(state)
    state["groups"][0]["buffer"] += 1

    assert copy["groups"][0]["buffer"].tolist() == [1.0, 1.0]
    assert (copy["groups"][0]["lr"], copy["none"], copy["inf"]) == (0.5, None, math.inf)
