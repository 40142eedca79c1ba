"""
The loop around a trainer, with fake trainers.
"""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from aol.errors import CheckpointError
from aol.training.resume import TIMED_EPOCHS, resume_trainer, train_epochs


class FakeTrainer:
    """
    A trainer whose epochs take the given seconds. Its checkpoints contain the number of epochs.
    """

    device = torch.device("cpu")
    moved_from = None

    def __init__(self, *seconds):
        self.seconds, self.config = seconds, SimpleNamespace(epochs=len(seconds))
        self.epoch, self.loaded = 0, []

    def epochs(self):
        while self.epoch < self.config.epochs:
            self.epoch += 1
            yield SimpleNamespace(epoch=self.epoch, seconds=self.seconds[self.epoch - 1])

    def load_state_dict(self, state):
        self.loaded.append(state["epoch"])
        if "broken" in state:
            raise KeyError("optimizer")
        self.epoch = state["epoch"]


@pytest.fixture
def saved(tmp_path):
    """
    Return a function that writes checkpoints and returns their files, newest first.
    """

    def write(*states):
        files = [tmp_path / f"{number}.pt" for number in range(len(states))]
        for file, state in zip(files, states, strict=True):
            if isinstance(state, bytes):
                file.write_bytes(state)
            elif state:
                torch.save(state, file)
        return files

    return write


@contextmanager
def lost():
    raise ConnectionError("the storage is away\nfor now")
    yield


def resume(states, log=lambda text: None):
    return resume_trainer(lambda: FakeTrainer(1.0), states, log=log, hint="do this")


def test_without_a_checkpoint_the_trainer_is_new():
    assert resume([]).epoch == 0


def test_only_the_newest_checkpoint_is_loaded(saved):
    logged = []
    trainer = resume(map(nullcontext, saved({"epoch": 7}, {"epoch": 6})), logged.append)

    assert trainer.loaded == [7]
    assert logged == ["continues after epoch 7"]


def test_a_state_of_another_kind_of_device_is_named_in_the_log(saved):
    class Moved(FakeTrainer):
        moved_from = "cuda"

    logged = []
    states = map(nullcontext, saved({"epoch": 7}))
    resume_trainer(lambda: Moved(1.0), states, log=logged.append, hint="")

    assert logged[1] == (
        "its state was saved on cuda, it continues on cpu: the last bits will differ"
    )


def test_an_unreadable_checkpoint_is_skipped_and_the_next_loaded_in_a_new_trainer(saved):
    files = saved(b"torn", None, {"epoch": 6, "broken": True}, {"epoch": 5})
    logged = []
    trainer = resume([lost(), *map(nullcontext, files)], logged.append)

    assert trainer.loaded == [5]
    assert [line.removeprefix("cannot continue from a checkpoint: ") for line in logged] == [
        "ConnectionError: the storage is away",
        logged[1].removeprefix("cannot continue from a checkpoint: "),
        f"{files[1]}: cannot be read: No such file or directory",
        f"{files[2]}: KeyError: 'optimizer'",
        "continues after epoch 5",
    ]
    assert logged[1].startswith(f"cannot continue from a checkpoint: {files[0]}: ")


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), MemoryError()])
def test_a_fault_of_the_machine_is_raised_and_no_older_checkpoint_used(saved, error):
    class Sick(FakeTrainer):
        def load_state_dict(self, state):
            raise error

    states = map(nullcontext, saved({"epoch": 7}, {"epoch": 6}))
    with pytest.raises(type(error)):
        resume_trainer(lambda: Sick(1.0), states, log=print, hint="")


def test_the_error_lists_every_reason_if_no_checkpoint_can_be_read(saved):
    (file,) = saved(b"torn")
    with pytest.raises(CheckpointError) as caught:
        resume([lost(), nullcontext(file)])

    first, *reasons, last = str(caught.value).splitlines()
    assert (first, last) == ("none of its checkpoints can be read:", "do this")
    assert reasons[0] == "  ConnectionError: the storage is away"
    assert reasons[1].startswith(f"  {file}: ")
    assert len(reasons) == 2


class FakeSaver:
    """
    Counts what it is to do; a save takes the given seconds.
    """

    def __init__(self, seconds=0.0):
        self.seconds, self.steps, self.ends = seconds, [], []

    def step(self, state):
        self.steps.append(state())

    def finish(self, state):
        self.ends.append(state())


def train(trainer, *, record=lambda metrics: None, stop=lambda s: False, saver=None):
    trainer.state_dict = lambda: trainer.epoch
    return train_epochs(trainer, record=record, must_stop=stop, saver=saver or FakeSaver())


def test_every_epoch_is_recorded_before_the_next_and_the_last_one_is_saved():
    trainer, recorded, saver = FakeTrainer(1.0, 1.0, 1.0), [], FakeSaver()

    def record(metrics):
        recorded.append((metrics.epoch, trainer.epoch, len(saver.steps)))

    assert train(trainer, record=record, saver=saver)
    assert recorded == [(1, 1, 0), (2, 2, 1), (3, 3, 2)]
    assert (saver.steps, saver.ends) == ([1, 2], [3])


def test_a_stop_saves_its_epoch_and_is_ignored_after_the_last_one():
    stops, saver = iter([False, True]), FakeSaver()

    assert not train(FakeTrainer(1.0, 1.0, 1.0), stop=lambda s: next(stops), saver=saver)
    assert (saver.steps, saver.ends) == ([1], [2])
    assert train(FakeTrainer(1.0), stop=lambda s: True)


def test_the_time_of_a_save_counts_for_the_deadline():
    estimates = []
    train(FakeTrainer(3.0, 3.0), stop=lambda s: bool(estimates.append(s)), saver=FakeSaver(2.0))

    assert estimates == [5.0]


def test_the_estimated_time_of_an_epoch_is_the_longest_of_the_latest_ones():
    seconds, estimates = [9.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0], []
    train(FakeTrainer(*seconds), stop=lambda s: bool(estimates.append(s)))

    assert TIMED_EPOCHS == 5
    assert estimates == [9.0, 9.0, 9.0, 9.0, 9.0, 2.0]


def test_an_error_while_recording_is_passed_on():
    def full(metrics):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        train(FakeTrainer(1.0), record=full)
