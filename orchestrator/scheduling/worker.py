"""One run on a worker: train, report every epoch, save at intervals. Does not import Ray."""

import base64
import gc
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aol.errors import CheckpointError
from aol.provenance import UNKNOWN, UNKNOWN_COMMIT, Checkout, checkout, environment
from aol.training.checkpoints import save_checkpoint
from aol.training.resume import resume_trainer, train_epochs
from orchestrator.formatting import pluralize
from orchestrator.provenance import PACKAGES
from orchestrator.scheduling.faults import MachineError, find_fault

if TYPE_CHECKING:
    from aol.training.trainer import EpochMetrics, Trainer

STATE_FILE = "state.pt"
OpenFolder = Callable[[], AbstractContextManager[str]]  # gives a folder with a saved state


class ReportError(Exception):
    """Raised when a result cannot be reported or stored; training itself did not fail."""


class Report(Protocol):
    """Sends a result to the driver, with a folder to keep if there is one."""

    def __call__(self, result: dict[str, Any], state: Path | None = None) -> None:
        """Return when the driver has the result. Raises: ReportError."""


def train_run(
    job: Mapping[str, Any],
    *,
    report: Report,
    stopping: Callable[[], bool],
    states: Sequence[OpenFolder],
) -> None:
    """Train one run from the first of `states` that can be read; its output goes to its log.

    Errors of the run are reported and end it. Raises: ReportError and MachineError, which the
    scheduler treats as a lost worker, so that the run is tried again.
    """
    with redirect_output(Path(job["log"])):
        _log(f"run {job['key']} on {socket.gethostname()}, process {os.getpid()}")
        from aol.training.trainer import DivergedError

        try:
            _train(job, report, stopping, states)
        except ReportError:
            traceback.print_exc()
            raise
        except DivergedError as error:
            _log(str(error))
            report({"kind": "diverged", "error": str(error)})
        except CheckpointError as error:
            _log(str(error))
            report({"kind": "failed", "error": str(error)})
        except Exception as error:
            traceback.print_exc()
            if fault := find_fault(error):
                report({"kind": "fault", "fault": fault.kind, "error": fault.text})
                raise MachineError(fault.text) from error
            report({"kind": "failed", "error": traceback.format_exc()})
    gc.collect()  # a captured step and its network refer to each other, and hold GPU memory


def _train(
    job: Mapping[str, Any],
    report: Report,
    stopping: Callable[[], bool],
    states: Sequence[OpenFolder],
) -> None:
    import torch

    from aol.training.trainer import evaluate_result

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

    def record(metrics: "EpochMetrics", save: bool) -> None:
        _log(str(metrics))
        result = {"kind": "epoch", "epoch": metrics.epoch, "values": metrics.values()}
        if not save:
            report(result)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(trainer, Path(folder) / STATE_FILE)
            report(result, Path(folder))

    if not train_epochs(
        trainer,
        record=record,
        must_stop=lambda seconds: stopping(),
        save_every_s=job["checkpoint_seconds"],
    ):
        return
    ended = evaluate_result(trainer)
    if ended.error:
        _log("unsound:\n" + "\n".join(ended.violations))
    report(
        {
            "kind": ended.outcome,
            "error": ended.error,
            "margins": base64.b64encode(ended.margins).decode(),
            "certificate": ended.certificate,
        }
    )


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
            undo.callback(stream.flush)
        yield
