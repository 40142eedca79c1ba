import base64
import ctypes
import itertools
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, astuple
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from aol.config import DataConfig, LossConfig, OptimizerConfig
from aol.provenance import checkout
from aol.training import saving
from aol.training.trainer import Trainer
from orchestrator.scheduling.faults import MachineError
from orchestrator.scheduling.storage import STATE_FILE, read_result
from orchestrator.scheduling.worker import ReportError, redirect_output, train_run
from tests.support.mounts import small_disk

pytestmark = pytest.mark.usefixtures("two_layers", "one_thread")

MEASURED = {"train_loss", "train_accuracy", "test_loss", "accuracy", "cra_36", "cra_1"}


@contextmanager
def worker_streams():
    """
    Redirect the standard streams to the descriptors 1 and 2, as in a worker; pytest's are others.
    """
    with (
        open(1, "w", closefd=False) as out,
        open(2, "w", closefd=False) as err,
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        yield


class Reports:
    """
    Keeps the reports of a worker.
    """

    def __init__(self):
        self.results = []

    def __call__(self, result):
        self.results.append(result)

    @property
    def kinds(self):
        return [(one["kind"], one.get("epoch")) for one in self.results if one["kind"] != "saved"]

    @property
    def states(self):
        """
        Return the folders of the checkpoints by epoch.
        """
        return {one["epoch"]: Path(one["path"]) for one in self.results if one["kind"] == "saved"}

    @property
    def result(self):
        """
        Return the margins and the certificate.
        """
        return read_result(self.results[-1]["path"])

    @property
    def measured(self):
        """
        Return the metrics of every epoch without its duration.
        """
        return {
            result["epoch"]: {name: result["values"][name] for name in MEASURED}
            for result in self.results
            if result["kind"] == "epoch"
        }


@pytest.fixture
def work(make_run, data_root, tmp_path):
    """
    Return a function that trains a run as a worker does and returns its reports and its log.
    """

    def train(
        *,
        states=(),
        opening=(),
        stop_at=None,
        checkpoint_seconds=1000.0,
        report=None,
        root=data_root,
        **settings,
    ):
        run = make_run(7, **settings)
        reports = report or Reports()
        job = {
            "key": run.key,
            "id": run.id,
            "train": asdict(run.train),
            "cpus": 1.0,
            "gpus": 0.0,
            "folder": str(tmp_path / f"states-{len(list(tmp_path.iterdir()))}"),
            "data_root": str(root),
            "log": str(tmp_path / "logs" / f"{run.key}.log"),
            "checkpoint_seconds": checkpoint_seconds,
        }

        calls = itertools.count()  # once before the first epoch and once after each

        def stopping():
            return stop_at is not None and next(calls) >= stop_at

        with worker_streams():
            found = [*opening, *(as_checkpoint(one) for one in states)]
            train_run(job, report=reports, stopping=stopping, states=found)
        return reports, Path(job["log"]).read_text()

    return train


def as_checkpoint(folder):
    """
    Return a checkpoint in the form that Ray passes on: a function that opens a folder.
    """

    @contextmanager
    def open_checkpoint():
        yield str(folder)

    return open_checkpoint


@pytest.fixture(scope="module")
def uninterrupted(make_run, data_root):
    """
    Return the metrics of three epochs of an uninterrupted trainer, and its margins.
    """
    trainer = Trainer(make_run(7).train, data_root=data_root, device=torch.device("cpu"))
    measured = {
        one.epoch: {name: one.values()[name] for name in MEASURED} for one in trainer.epochs()
    }
    return measured, trainer.margins().numpy()


def test_a_run_reports_its_placement_its_epochs_and_its_margins(work, uninterrupted):
    reports, log = work()
    measured, margins = uninterrupted
    done = base64.b64decode(reports.result["margins"])

    assert reports.kinds == [
        ("placed", 0),
        ("epoch", 1),
        ("epoch", 2),
        ("epoch", 3),
        ("done", None),
    ]
    assert reports.measured == measured
    assert np.array_equal(np.frombuffer(done, "<f4"), margins)
    assert reports.result["certificate"]["arithmetic"] == "float64"
    assert reports.result["certificate"]["violations"] == []
    assert reports.results[0]["device"] == "CPU, 1 thread"
    facts = reports.results[0]["environment"]
    assert reports.results[0]["host"] == facts["host"]
    assert (facts["commit"], facts["diff"]) == astuple(checkout())
    assert {"numpy", "ray", "torch"} <= set(facts["packages"])
    assert log.splitlines()[0].split(" ", 2)[2].startswith("run 7-s7-")
    assert log.count("EpochMetrics(") == 3


def test_the_last_epoch_is_saved_before_the_interval_is_over(work):
    reports, _ = work()

    assert list(reports.states) == [3]


@pytest.fixture
def every_epoch(monkeypatch):
    """
    Save after every epoch that a run with an interval of zero trains, whatever that costs.
    """

    class InlineExecutor:
        def __init__(self, **_):
            pass

        def submit(self, function, *arguments):
            future = Future()
            try:
                future.set_result(function(*arguments))
            except OSError as error:
                future.set_exception(error)
            return future

    monkeypatch.setattr(saving, "ThreadPoolExecutor", InlineExecutor)
    monkeypatch.setattr(saving, "LARGEST_SHARE", math.inf)


def test_an_interval_of_zero_saves_every_epoch(work, every_epoch):
    reports, _ = work(checkpoint_seconds=0.0)

    assert list(reports.states) == [1, 2, 3]


def test_a_checkpoint_is_saved_after_every_interval(work, every_epoch, monkeypatch):
    """
    An epoch takes twelve seconds, counted when it is reported. Epoch 3 is the first one to end
    after thirty seconds, and epoch 7 is the last one.
    """
    now = [0.0]

    class SlowReports(Reports):
        def __call__(self, result):
            if result["kind"] == "epoch":
                now[0] += 12
            super().__call__(result)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reports, _ = work(report=SlowReports(), checkpoint_seconds=30, epochs=7)

    assert list(reports.states) == [3, 6, 7]


def test_a_stopped_run_saves_its_epoch_and_is_not_done(work):
    reports, _ = work(stop_at=2)

    assert reports.kinds == [("placed", 0), ("epoch", 1), ("epoch", 2)]
    assert list(reports.states) == [2]


def test_a_run_stopped_in_its_last_epoch_is_done(work):
    reports, _ = work(stop_at=3)

    assert reports.kinds[-1] == ("done", None)


def test_a_run_stopped_before_its_start_reports_nothing(work):
    reports, _ = work(stop_at=0)

    assert reports.results == []


def test_a_continued_run_has_the_metrics_of_an_uninterrupted_one(work, uninterrupted):
    first, _ = work(stop_at=1)
    second, log = work(states=[first.states[1]])

    assert second.kinds == [("placed", 1), ("epoch", 2), ("epoch", 3), ("done", None)]
    assert first.measured | second.measured == uninterrupted[0]
    assert second.result == work()[0].result
    assert "continues after epoch 1" in log


def test_a_run_continues_from_the_newest_checkpoint(work, every_epoch):
    first, _ = work(stop_at=2, checkpoint_seconds=0.0)
    second, _ = work(states=[first.states[2], first.states[1]])

    assert second.kinds[0] == ("placed", 2)


def damaged(folder):
    file = folder / STATE_FILE
    file.write_bytes(file.read_bytes()[:-1000])


def emptied(folder):
    (folder / STATE_FILE).write_bytes(b"")


def removed(folder):
    (folder / STATE_FILE).unlink()


def replaced_by_text(folder):
    (folder / STATE_FILE).write_text("no state")


def flipped(folder):
    """
    Change one bit in the middle of a tensor.
    """
    file = folder / STATE_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def flipped_without_checksum(folder):
    flipped(folder)
    (folder / f"{STATE_FILE}.sha256").unlink()


HARMS = [damaged, emptied, removed, replaced_by_text, flipped, flipped_without_checksum]


@pytest.mark.parametrize("harm", HARMS)
def test_the_older_checkpoint_is_used_if_the_newest_is_damaged(
    work, every_epoch, uninterrupted, harm
):
    first, _ = work(stop_at=2, checkpoint_seconds=0.0)
    harm(first.states[2])
    second, log = work(states=[first.states[2], first.states[1]])

    assert second.kinds[0] == ("placed", 1)
    assert {epoch: second.measured[epoch] for epoch in (2, 3)} == {
        epoch: uninterrupted[0][epoch] for epoch in (2, 3)
    }
    assert "cannot continue from a checkpoint" in log


def test_the_older_checkpoint_is_used_if_the_newest_is_missing(work, tmp_path):
    first, _ = work(stop_at=1)
    lost = tmp_path / "lost"
    second, _ = work(states=[lost, first.states[1]])

    assert second.kinds[0] == ("placed", 1)


def test_a_run_fails_if_none_of_its_checkpoints_can_be_read(work, tmp_path):
    """
    The storage may be unavailable for a moment only, and training from the start would replace its
    checkpoints.
    """
    first, _ = work(stop_at=1)
    emptied(first.states[1])
    second, log = work(states=[first.states[1], tmp_path / "lost"])

    assert second.kinds == [("failed", None)]
    error = second.results[0]["error"]
    assert error.startswith("none of its checkpoints can be read:\n")
    assert "cannot be read: No such file or directory" in error
    assert error.endswith("train from the start with --rerun 7")
    assert error in log


def test_a_checkpoint_of_other_settings_is_an_error(work):
    first, _ = work(stop_at=1, loss=LossConfig(offset=1.0, temperature=1.0))
    second, _ = work(states=[first.states[1]])

    assert second.kinds == [("failed", None)]
    assert "the state is of settings" in second.results[0]["error"]


def test_no_weights_of_a_partly_loaded_checkpoint_remain(work, every_epoch, uninterrupted):
    """
    The weights can be loaded and the optimizer's state cannot. The run must not continue from the
    older checkpoint with the weights of the newer one.
    """
    first, _ = work(checkpoint_seconds=0.0)
    file = first.states[2] / STATE_FILE
    state = torch.load(file, weights_only=True)
    state["optimizer"] = {"state": {}, "param_groups": []}
    torch.save(state, file)
    second, _ = work(states=[first.states[2], first.states[1]])

    assert second.kinds[0] == ("placed", 1)
    assert second.measured == {epoch: uninterrupted[0][epoch] for epoch in (2, 3)}


def test_a_run_with_all_its_epochs_is_only_ended(work):
    first, _ = work()
    second, _ = work(states=[first.states[3]])

    assert second.kinds == [("placed", 3), ("done", None)]
    assert second.result == first.result


def test_divergence_is_reported_not_raised(work):
    reports, log = work(optimizer=OptimizerConfig(learning_rate=1e30))

    assert reports.kinds[-1] == ("diverged", None)
    assert "run 7 diverged after 0 epochs: no finite loss" in reports.results[-1]["error"]
    assert "run 7 diverged" in log


def test_an_error_is_reported_with_its_traceback_not_raised(work):
    reports, log = work(data=DataConfig(name="cifar100"))  # no source has it

    assert reports.kinds == [("failed", None)]
    assert reports.results[0]["error"].startswith("Traceback")
    assert "Traceback" in log


def test_a_fault_of_the_machine_is_reported_and_raised_so_that_ray_tries_again(
    work, tmp_path, monkeypatch
):
    error = torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered")
    monkeypatch.setattr(Trainer, "epochs", Mock(side_effect=error))
    reports = Reports()
    with pytest.raises(MachineError, match="ECC error"):
        work(report=reports)

    assert reports.kinds == [("placed", 0), ("fault", None)]
    assert reports.results[1]["fault"] == "gpu"


def test_a_report_that_fails_is_raised_and_not_reported_as_a_failed_run(work, tmp_path):
    """
    Ray then retries the run, as after the loss of a worker. The log contains the reason.
    """

    class LostDriver(Reports):
        def __call__(self, result):
            if result["kind"] == "saved":
                raise ReportError("the driver is gone")
            super().__call__(result)

    reports = LostDriver()
    with pytest.raises(ReportError):
        work(report=reports)

    assert ("failed", None) not in reports.kinds
    (log,) = (tmp_path / "logs").iterdir()
    assert "the driver is gone" in log.read_text()


@contextmanager
def fetched_to(folder):
    """
    Fetch a checkpoint from a remote storage, as Ray does.
    """
    (folder / STATE_FILE).write_bytes(bytes(100_000))
    yield str(folder)


def test_a_full_temporary_folder_is_a_lost_worker_and_no_damaged_checkpoint(work, tmp_path):
    reports = Reports()
    with (
        small_disk(tmp_path / "full", "64k") as full,
        pytest.raises(MachineError, match="No space left on device"),
    ):
        work(report=reports, opening=[lambda: fetched_to(full)])

    assert reports.kinds == [("fault", None)]
    assert reports.results[0]["fault"] == "disk"


def test_a_full_disk_for_the_images_is_a_lost_worker(work, tmp_path):
    reports = Reports()
    with (
        small_disk(tmp_path / "full", "64k") as full,
        pytest.raises(MachineError, match=r"cannot store digits in .*No space left on device"),
    ):
        work(report=reports, root=full)

    assert reports.kinds == [("fault", None)]
    assert reports.results[0]["fault"] == "disk"


def test_a_log_on_a_full_disk_does_not_end_the_training(work, tmp_path):
    with small_disk(tmp_path / "logs", "4k") as full:
        (full / "filler").write_bytes(bytes(4096))
        reports, _ = work()

    assert reports.kinds[-1] == ("done", None)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(saving, "PATIENCE_S", 0.0)


class FullStorage(Reports):
    """
    Replaces the folder of the run by a file when its first epoch is reported.
    """

    def __init__(self, folder, room_after):
        super().__init__()
        self.folder, self.room_after = folder, room_after

    def __call__(self, result):
        super().__call__(result)
        if result["kind"] == "epoch" and result["epoch"] == 1:
            self.folder.touch()
        if result["kind"] == "epoch" and result["epoch"] == self.room_after:
            self.folder.unlink()


def test_training_continues_while_its_state_cannot_be_saved(work, tmp_path, every_epoch):
    reports, log = work(report=FullStorage(tmp_path / "states-0", 3), checkpoint_seconds=0.0)

    assert reports.kinds[-1] == ("done", None)
    assert list(reports.states) == [3]
    assert log.count("the state cannot be saved: ") == 2


def test_a_run_whose_last_state_cannot_be_saved_is_interrupted(work, tmp_path, impatient):
    reports, log = work(report=FullStorage(tmp_path / "states-0", None))

    assert reports.kinds[-1] == ("interrupted", None)
    assert reports.results[-1]["error"].startswith("the state cannot be saved: ")
    assert "Traceback" not in log


def test_a_finished_run_keeps_its_weights_only(work, every_epoch):
    reports, _ = work(checkpoint_seconds=0.0)
    states = {
        epoch: torch.load(folder / STATE_FILE, weights_only=True)
        for epoch, folder in reports.states.items()
    }

    assert {"optimizer", "order", "noise"} < states[2].keys()
    assert states[3].keys() == {"digest", "seed", "epoch", "model"}


# The log


def test_output_of_python_c_and_subprocesses_is_in_the_log(tmp_path):
    libc = ctypes.CDLL(None)
    path = tmp_path / "logs" / "x.log"
    with worker_streams(), redirect_output(path):
        print("from print", flush=True)
        print("from stderr", file=sys.stderr, flush=True)
        os.write(1, b"from a descriptor\n")
        libc.puts(b"from C")
        libc.fflush(None)
        subprocess.run(["echo", "from a subprocess"], check=True)

    assert path.read_text().splitlines() == [
        "from print",
        "from stderr",
        "from a descriptor",
        "from C",
        "from a subprocess",
    ]


def open_descriptors():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_the_streams_are_restored(tmp_path, capfd):
    os.write(1, b"before\n")
    before = open_descriptors()
    with worker_streams(), redirect_output(tmp_path / "x.log"):
        os.write(1, b"inside\n")
    os.write(1, b"after\n")
    os.write(2, b"after too\n")
    left = open_descriptors()

    assert capfd.readouterr() == ("before\nafter\n", "after too\n")
    assert left == before


def test_the_streams_are_restored_after_an_error(tmp_path, capfd):
    with pytest.raises(ZeroDivisionError), worker_streams(), redirect_output(tmp_path / "x.log"):
        raise ZeroDivisionError
    os.write(1, b"after\n")

    assert capfd.readouterr().out == "after\n"


def test_output_that_is_still_buffered_is_not_in_the_log(tmp_path):
    """
    Output inside the block is in the log even if it is not flushed. This needs a real process,
    whose output is buffered.
    """
    script = """
import sys
from pathlib import Path
from orchestrator.scheduling.worker import ReportError, redirect_output
print("before")
with redirect_output(Path(sys.argv[1])):
    print("inside")
print("after")
"""
    log = tmp_path / "x.log"
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", script, str(log)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)

    assert done.stdout == "before\nafter\n"
    assert log.read_text() == "inside\n"


def test_a_log_is_extended_not_overwritten(tmp_path):
    for text in ("one", "two"):
        with worker_streams(), redirect_output(tmp_path / "x.log"):
            print(text)

    assert (tmp_path / "x.log").read_text() == "one\ntwo\n"


def test_output_is_not_redirected_if_the_log_cannot_be_written(tmp_path, capfd):
    (tmp_path / "file").touch()
    with worker_streams(), redirect_output(tmp_path / "file" / "x.log"):
        os.write(1, b"inside\n")

    assert capfd.readouterr().out == "inside\n"
