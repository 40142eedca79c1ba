"""One run on a worker: train, report every epoch, save at intervals. Does not import Ray."""

import base64
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from aol.errors import CheckpointError, SavingError
from aol.provenance import UNKNOWN, UNKNOWN_COMMIT, Checkout, checkout, environment
from aol.training.resume import resume_trainer, train_epochs
from orchestrator.formatting import pluralize
from orchestrator.provenance import PACKAGES
from orchestrator.scheduling.faults import MachineError, find_fault
from orchestrator.scheduling.storage import STATE_FILE, RunStorage

if TYPE_CHECKING:
    from aol.training.result import RunResult
    from aol.training.trainer import EpochMetrics, Trainer

OpenFolder = Callable[[], AbstractContextManager[str]]  # gives a folder with a saved state


class ReportError(Exception):
    """Raised when a result cannot be reported; training itself did not fail."""


class Report(Protocol):
    """Sends a result to the driver."""

    def __call__(self, result: dict[str, Any]) -> None:
        """Return when the driver has the result. Raises: ReportError."""


def train_run(
    job: Mapping[str, Any],
    *,
    report: Report,
    stopping: Callable[[], bool],
    states: Sequence[OpenFolder],
) -> None:
    """Train one run from the first of `states` that can be read; its output goes to its log.

    Errors of the run are reported and end it. A run whose state cannot be saved at its end is
    interrupted. Raises: ReportError and MachineError, which the scheduler treats as a lost worker,
    so that the run is tried again.
    """
    with redirect_output(Path(job["log"])):
        _log(f"run {job['key']} on {socket.gethostname()}, process {os.getpid()}")
        from aol.training.trainer import DivergedError

        try:
            _train(job, report, stopping, states)
        except ReportError as error:
            _log(str(error))
            raise
        except DivergedError as error:
            _log(str(error))
            report({"kind": "diverged", "error": str(error)})
        except SavingError as error:
            _log(str(error))
            report({"kind": "interrupted", "error": str(error)})
        except Exception as error:
            text = str(error) if isinstance(error, CheckpointError) else traceback.format_exc()
            _log(text)
            if fault := find_fault(error):
                report({"kind": "fault", "fault": fault.kind, "error": fault.text})
                raise MachineError(fault.text) from error
            report({"kind": "failed", "error": text})
    gc.collect()  # a captured step and its network refer to each other, and hold GPU memory


def _train(
    job: Mapping[str, Any],
    report: Report,
    stopping: Callable[[], bool],
    states: Sequence[OpenFolder],
) -> None:
    import torch

    from aol.training.result import evaluate_result
    from aol.training.saving import StateSaver

    if stopping():
        return
    torch.set_num_threads(max(1, int(job["cpus"])))
    trainer = resume_trainer(
        _trainer_factory(job),
        map(_state_file, states),
        log=_log,
        hint=f"repair the storage and run again, or train from the start with --rerun {job['id']}",
    )
    report(_placement(trainer))

    def record(metrics: "EpochMetrics") -> None:
        _log(str(metrics))
        report({"kind": "epoch", "epoch": metrics.epoch, "values": metrics.values()})

    storage = RunStorage(job["folder"])
    saver = StateSaver(
        storage.save_state,
        saved=lambda saved: report({"kind": "saved", **asdict(saved)}),
        every_s=job["checkpoint_seconds"],
        log=_log,
    )
    if not train_epochs(trainer, record=record, must_stop=lambda seconds: stopping(), saver=saver):
        return
    result = evaluate_result(trainer)
    if result.error:
        _log("unsound:\n" + "\n".join(result.violations))
    report({"kind": result.outcome, "error": result.error, "path": _save(storage, result)})


def _save(storage: RunStorage, result: "RunResult") -> str:
    """Save the result of a run; return its location. Raises: SavingError."""
    margins = base64.b64encode(result.margins).decode()
    try:
        return storage.save_result({"margins": margins, "certificate": result.certificate})
    except (OSError, ValueError) as error:
        raise SavingError(f"the result cannot be saved: {error}") from error


def _placement(trainer: "Trainer") -> dict[str, Any]:
    """Return where and in which environment the trainer trains, and the epoch it starts after."""
    import torch

    data = trainer.config.data.name
    facts = environment(trainer.device, data, libraries=PACKAGES, source=_loaded_source())
    if facts["commit"] == UNKNOWN:
        _log(UNKNOWN_COMMIT)
    on_cpu = f"CPU, {pluralize(torch.get_num_threads(), 'thread')}"
    return {
        "kind": "placed",
        "host": facts["host"],
        "device": on_cpu if trainer.device.type == "cpu" else facts["device"],
        "epoch": trainer.epoch,
        "environment": facts,
    }


@cache
def _loaded_source() -> Checkout:
    """Return the checkout of the code in this process, which may train several runs."""
    return checkout()


def _trainer_factory(job: Mapping[str, Any]) -> Callable[[], "Trainer"]:
    """Return a function that makes a fresh trainer of the job's run."""
    import torch

    from aol.config import from_dict
    from aol.data.datasets import default_root
    from aol.training.trainer import Trainer

    config = from_dict(job["train"])
    root = Path(job["data_root"]) if job["data_root"] else default_root()
    device = torch.device("cuda" if job["gpus"] else "cpu")
    return partial(Trainer, config, data_root=root, device=device, run=str(job["id"]))


@contextmanager
def _state_file(open_folder: OpenFolder) -> Iterator[Path]:
    with open_folder() as folder:
        yield Path(folder) / STATE_FILE


def _log(text: str) -> None:
    with suppress(OSError):  # a full disk does not end the run
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", flush=True)


@contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Append everything that this process prints, also from C, to a file.

    If the file cannot be written, the output goes where it went before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        yield
        return
    with ExitStack() as undo:
        undo.callback(file.close)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            copy = os.dup(number)
            undo.callback(os.close, copy)
            undo.callback(os.dup2, copy, number)
            os.dup2(file.fileno(), number)
        for stream in (sys.stdout, sys.stderr):
            undo.callback(_flush, stream)
        yield


def _flush(stream: TextIO) -> None:
    with suppress(OSError):
        stream.flush()
