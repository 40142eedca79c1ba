"""One run on a worker: train, report every epoch, save by the clock. Knows nothing of Ray."""

import base64
import gc
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.formatting import pluralize

if TYPE_CHECKING:
    from aol.training.trainer import Trainer

STATE_FILE = "state.pt"
OpenState = Callable[[], AbstractContextManager[str]]  # a folder with a saved state


class CheckpointError(Exception):
    """Training got further before, and nothing of it can be read."""


class ReportError(Exception):
    """The driver or the storage did not take a result; the run itself is well."""


class Report(Protocol):
    """Sends a result to the driver, with a folder to keep if there is one."""

    def __call__(self, result: dict[str, Any], state: Path | None = None) -> None:
        """Return when the driver has the result. Raises: ReportError."""


def train_run(
    job: Mapping[str, Any],
    *,
    report: Report,
    stopping: Callable[[], bool],
    states: Sequence[OpenState],
) -> None:
    """Train one run from the first of `states` that can be read; its output goes to its log.

    Errors of the run are reported and end it. Raises: ReportError, as if the worker were lost.
    """
    with output_to(Path(job["log"])):
        _say(f"run {job['key']} on {socket.gethostname()}, process {os.getpid()}")
        from aol.training.trainer import DivergedError

        try:
            _train(job, report, stopping, states)
        except ReportError:
            traceback.print_exc()
            raise
        except DivergedError as error:
            _say(str(error))
            report({"kind": "diverged", "error": str(error)})
        except CheckpointError as error:
            _say(str(error))
            report({"kind": "failed", "error": str(error)})
        except Exception:
            traceback.print_exc()
            report({"kind": "failed", "error": traceback.format_exc()})
    gc.collect()  # a recorded step and its network hold each other, and the GPU's memory


def _train(
    job: Mapping[str, Any],
    report: Report,
    stopping: Callable[[], bool],
    states: Sequence[OpenState],
) -> None:
    import torch

    from aol.training.trainer import evaluate_result

    if stopping():
        return
    torch.set_num_threads(max(1, int(job["cpus"])))
    trainer = _continued(_maker(job), states, job["id"])
    device = f"CPU, {pluralize(torch.get_num_threads(), 'thread')}"
    if job["gpus"]:
        device = torch.cuda.get_device_name()
    host = socket.gethostname()
    report({"kind": "placed", "host": host, "device": device, "epoch": trainer.epoch})
    if not _reached_the_end(trainer, job["checkpoint_seconds"], report, stopping):
        return
    ended = evaluate_result(trainer)
    if ended.error:
        _say("unsound:\n" + "\n".join(ended.violations))
    report(
        {
            "kind": ended.outcome,
            "error": ended.error,
            "margins": base64.b64encode(ended.margins).decode(),
            "certificate": ended.certificate,
        }
    )


def _maker(job: Mapping[str, Any]) -> Callable[[], "Trainer"]:
    """What makes a fresh trainer of the job's run."""
    import torch

    from aol.config import from_dict
    from aol.data.datasets import default_root
    from aol.training.trainer import Trainer

    config = from_dict(job["train"])
    root = Path(job["data_root"]) if job["data_root"] else default_root()
    place = torch.device("cuda" if job["gpus"] else "cpu")
    return partial(Trainer, config, data_root=root, device=place, run=str(job["id"]))


def _reached_the_end(
    trainer: "Trainer", save_every_s: float, report: Report, stopping: Callable[[], bool]
) -> bool:
    """Train epoch by epoch, each reported; False if it is to stop."""
    import torch

    saved = time.monotonic()
    for metrics in trainer.epochs():
        _say(str(metrics))
        result = {"kind": "epoch", "epoch": metrics.epoch, "values": metrics.values()}
        last, stop = trainer.epoch == trainer.config.epochs, stopping()
        if last or stop or time.monotonic() - saved >= save_every_s:
            with tempfile.TemporaryDirectory() as folder:
                torch.save(trainer.state_dict(), Path(folder) / STATE_FILE)
                report(result, Path(folder))
            saved = time.monotonic()
        else:
            report(result)
        if stop and not last:
            return False
    return True


def _continued(make: Callable[[], "Trainer"], states: Sequence[OpenState], run: int) -> "Trainer":
    """A trainer with the newest state that can be read, a fresh one if there never was any.

    Raises: CheckpointError. Training from the start would hide that the storage is away, and
    would replace what is there once it is back.
    """
    import torch

    reasons = []
    for open_state in states:
        trainer = make()  # a state that fits in part leaves its marks
        try:
            with open_state() as folder:
                file = Path(folder) / STATE_FILE
                state = torch.load(file, map_location=trainer.device, weights_only=True)
            trainer.load_state_dict(state)
        except Exception as error:  # a damaged file raises anything; the next one may be whole
            reasons.append(f"  {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
            _say(f"cannot continue from a checkpoint:\n{reasons[-1]}")
            continue
        _say(f"continues after epoch {trainer.epoch}")
        return trainer
    if reasons:
        raise CheckpointError(
            "\n".join(["none of its checkpoints can be read:", *reasons])
            + f"\nmend the storage and run again, or train from the start with --rerun {run}"
        )
    return make()


def _say(text: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}", flush=True)


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Send everything this process prints, also from C, to the end of a file.

    On a machine that cannot write there, the output stays where it was.
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
