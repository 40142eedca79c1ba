"""A run in a folder of plain files, written and read without the orchestrator.

    run.json          key, ID, name, profile and settings of the run
    attempts.jsonl    a line per call that trained it: machine, versions, commit, fingerprints of
                      the images, when, and after which epoch it continued
    metrics.jsonl     a line per epoch, on the disk before the next epoch starts
    state-<n>.pt      the newest two states, after n epochs; in the end the trained weights
    state-<n>.pt.sha256   their checksums
    margins.f32       score margins of the test set after the last epoch, little-endian float32
    end.json          how the run ended (done, unsound, diverged), when, and its certificate

Writes are atomic, except for the lines of metrics. Reading needs no torch.
"""

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aol.atomic import atomic_path
from aol.provenance import UNKNOWN, UNKNOWN_COMMIT, environment
from aol.reading import parse_json, read_limited
from aol.training.checkpoints import checksum_file, save_checkpoint
from aol.training.records import Attempt, End, Epoch, Outcome, Run, read_record, read_records
from aol.training.resume import resume_trainer, train_epochs

if TYPE_CHECKING:
    import torch

    from aol.data.datasets import Images
    from aol.training.trainer import EpochMetrics

STATES_KEPT = 2


class RunFolder:
    """The folder of one run: its files, and training in it.

    Methods that read a file raise OSError, or ValueError with the file, the line and the field.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_file = path / "run.json"
        self.attempts_file = path / "attempts.jsonl"
        self.metrics_file = path / "metrics.jsonl"
        self.margins_file = path / "margins.f32"
        self.end_file = path / "end.json"

    def run(self) -> Run:
        """Return the run whose folder it is."""
        return read_record(Run, self.run_file)

    def attempts(self) -> tuple[Attempt, ...]:
        """Return the calls that trained the run."""
        return tuple(read_records(Attempt, self.attempts_file))

    def epochs(self) -> tuple[Epoch, ...]:
        """Return the epochs measured."""
        return tuple(read_records(Epoch, self.metrics_file))

    def end(self) -> End | None:
        """Return how the run ended, None if it has not."""
        return read_record(End, self.end_file) if self.end_file.exists() else None

    def margins(self) -> bytes | None:
        """Return the margins as they are stored, None before the end."""
        return read_limited(self.margins_file) if self.margins_file.exists() else None

    def state(self, epoch: int) -> Path:
        """Return the file of the state after an epoch, which may not exist."""
        return self.path / f"state-{epoch}.pt"

    def states(self) -> list[Path]:
        """Return the files of the states, newest first."""
        found = {
            int(match[1]): file
            for file in self.path.glob("state-*.pt")
            if (match := re.fullmatch(r"state-(\d+)\.pt", file.name))
        }
        return [found[epoch] for epoch in sorted(found, reverse=True)]

    def train(
        self,
        run: Run,
        *,
        data_root: Path,
        device: "torch.device",
        must_stop: Callable[[float], bool],
        save_every_s: float = 60.0,
        cuda_graph: bool = True,
        images: "tuple[Images, Images] | None" = None,
        log: Callable[[str], None],
    ) -> Outcome:
        """Train the run from its newest state to its end, or until `must_stop`.

        `must_stop` is that of `aol.training.resume.train_epochs`, `save_every_s` that of
        `aol.training.saving.StateSaver`; `cuda_graph` and `images` are those of the trainer.

        Raises: DataError without images, CheckpointError if no state can be read, SavingError if
        the last one cannot be written, ValueError if the folder is another run's.
        """
        from aol.training.result import evaluate_result
        from aol.training.saving import StateSaver
        from aol.training.trainer import DivergedError, Trainer

        if end := self.end():
            return end.outcome
        self._write_run(run)
        make = partial(
            Trainer,
            run.config,
            data_root=data_root,
            device=device,
            run=str(run.id),
            cuda_graph=cuda_graph,
            images=images,
        )
        log_run = partial(_log_run, log, run)
        trainer = resume_trainer(
            make,
            map(nullcontext, self.states()),
            log=log_run,
            hint="remove these files to train from the start",
        )
        self._append_attempt(run, device, trainer.epoch, log_run)
        self._drop_metrics_after(trainer.epoch)

        def record(metrics: "EpochMetrics") -> None:
            self._append_metrics(metrics)
            log_run(str(metrics))

        saver = StateSaver(self._save, saved=self._drop_older, every_s=save_every_s, log=log_run)
        try:
            if not train_epochs(trainer, record=record, must_stop=must_stop, saver=saver):
                return Outcome.STOPPED
            result = evaluate_result(trainer)
        except DivergedError as error:
            return self._write_end(Outcome.DIVERGED, error=str(error))
        _write(self.margins_file, result.margins)
        return self._write_end(
            Outcome(result.outcome), error=result.error, certificate=result.certificate
        )

    def _write_run(self, run: Run) -> None:
        described = json.dumps(run.as_dict(), indent=1).encode()
        if self.run_file.exists() and not self._is_of(run):
            raise ValueError(f"{self.run_file} describes another run; use another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        _write(self.run_file, described)

    def _is_of(self, run: Run) -> bool:
        try:
            return self.run() == run  # other versions write other fields at their default
        except ValueError:
            return False

    def _append_attempt(
        self, run: Run, device: "torch.device", epoch: int, log: Callable[[str], None]
    ) -> None:
        file = self.attempts_file
        before = file.read_bytes() if file.exists() else b""
        facts = environment(device, run.config.data.name)
        if facts["commit"] == UNKNOWN:
            log(UNKNOWN_COMMIT)
        line = json.dumps({"from_epoch": epoch, "time": _now(), **facts})
        _write(file, before + f"{line}\n".encode())

    def _drop_metrics_after(self, epoch: int) -> None:
        """Keep the metrics of the epochs that the state has; the others are measured again."""
        file = self.metrics_file
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        _write(file, b"".join(line for line in lines if _epoch(line) <= epoch))

    def _append_metrics(self, metrics: "EpochMetrics") -> None:
        line = {"epoch": metrics.epoch, "time": _now(), "values": metrics.values()}
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _save(self, state: dict[str, Any]) -> int:
        save_checkpoint(state, self.state(state["epoch"]))
        return int(state["epoch"])

    def _drop_older(self, epoch: int) -> None:
        """Delete all but the newest states, and all others of a run with all its epochs."""
        finished = epoch == self.run().config.epochs
        for old in self.states()[1 if finished else STATES_KEPT :]:
            old.unlink()
            checksum_file(old).unlink(missing_ok=True)

    def _write_end(
        self, outcome: Outcome, *, error: str | None, certificate: dict[str, Any] | None = None
    ) -> Outcome:
        ended = {"outcome": outcome, "time": _now(), "error": error, "certificate": certificate}
        _write(self.end_file, json.dumps(ended).encode())
        return outcome


def _log_run(log: Callable[[str], None], run: Run, text: str) -> None:
    log(f"run {run.id}: {text}")


def _epoch(line: bytes) -> float:
    """Return the epoch of a line of metrics, infinity if the line was cut off or has none."""
    try:
        return int(parse_json(line)["epoch"])
    except (KeyError, OverflowError, TypeError, ValueError):
        return math.inf


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
