"""A run in a folder of plain files: what a machine without the orchestrator leaves behind.

    run.json          key, ID, name, profile and settings of the run
    attempts.jsonl    a line per call that trained it: machine, versions, commit, fingerprints of
                      the images, when, and after which epoch it went on
    metrics.jsonl     a line per epoch, on the disk before the next epoch starts
    state-<n>.pt      the newest two states, after n epochs
    margins.f32       score margins of the test set after the last epoch, little-endian float32
    end.json          how the run ended (done, unsound, diverged), when, and its certificate

Everything is written aside and renamed, but for the lines of metrics.
"""

import json
import os
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aol.atomic import atomic_path
from aol.config import TrainConfig, from_dict
from aol.data.datasets import Images
from aol.provenance import environment
from aol.training.trainer import DivergedError, Trainer, evaluate_result

STATES_KEPT = 2
LATEST = 5  # epochs; the first of a call is longer: libraries choose, and steps are recorded


class Outcome(StrEnum):
    """What became of a run."""

    DONE = "done"
    UNSOUND = "unsound"
    DIVERGED = "diverged"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Run:
    """A run as `orchestrator plan --json` describes it."""

    key: str
    id: int
    name: str
    profile: str
    config: TrainConfig

    @classmethod
    def from_plan(cls, row: dict[str, Any]) -> "Run":
        """A row of the plan. Raises: KeyError, TypeError, ValueError."""
        config = from_dict(row["settings"])
        return cls(row["key"], row["id"], row["name"], row["profile"], config)


class RunFolder:
    """Trains a run in its folder, from where the folder stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_file = path / "metrics.jsonl"
        self.end_file = path / "end.json"

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended, None if it has not."""
        if not self.end_file.exists():
            return None
        return Outcome(json.loads(self.end_file.read_text(encoding="utf-8"))["outcome"])

    def states(self) -> list[Path]:
        """The states, newest first."""
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
        device: torch.device,
        must_stop: Callable[[float], bool],
        save_every_s: float = 60.0,
        record: bool = True,
        images: tuple[Images, Images] | None = None,
        say: Callable[[str], None] = print,
    ) -> Outcome:
        """Train the run to its end, or until `must_stop`, asked after every epoch.

        `must_stop` gets the seconds that the longest of the latest epochs and a save took here.
        `record` says whether steps on CUDA are recorded as a graph; `images` take the place of
        those in `data_root`.

        Raises: DataError without images, ValueError if the folder is another run's.
        """
        if self.outcome:
            return self.outcome
        self._describe(run)
        make = partial(
            Trainer,
            run.config,
            data_root=data_root,
            device=device,
            run=str(run.id),
            record=record,
            images=images,
        )
        trainer = self._continued(make, say)
        self._note_attempt(run, device, trainer.epoch)
        try:
            if not self._reached_the_end(trainer, must_stop, save_every_s, say):
                return Outcome.STOPPED
            result = evaluate_result(trainer)
        except DivergedError as error:
            return self._end(Outcome.DIVERGED, error=str(error))
        _write(self.path / "margins.f32", result.margins)
        return self._end(
            Outcome(result.outcome), error=result.error, certificate=result.certificate
        )

    def _reached_the_end(
        self,
        trainer: Trainer,
        must_stop: Callable[[float], bool],
        save_every_s: float,
        say: Callable[[str], None],
    ) -> bool:
        """Train epoch by epoch, every one on the disk before the next; False if it must stop."""
        saved, saving = time.monotonic(), 0.0
        latest: deque[float] = deque(maxlen=LATEST)
        with self._metrics_after(trainer.epoch).open("a", encoding="utf-8") as file:
            for metrics in trainer.epochs():
                line = {"epoch": metrics.epoch, "time": _now(), "values": metrics.values()}
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
                say(f"run {trainer.run}: {metrics}")
                latest.append(metrics.seconds)
                last = trainer.epoch == trainer.config.epochs
                stop = not last and must_stop(max(latest) + saving)
                if last or stop or time.monotonic() - saved >= save_every_s:
                    started = time.monotonic()
                    self._save(trainer)
                    saved = time.monotonic()
                    saving = saved - started
                if stop:
                    return False
        return True

    def _describe(self, run: Run) -> None:
        described = json.dumps(
            {
                "key": run.key,
                "id": run.id,
                "name": run.name,
                "profile": run.profile,
                "settings": asdict(run.config),
            },
            indent=1,
        ).encode()
        file = self.path / "run.json"
        if file.exists() and file.read_bytes() != described:
            raise ValueError(f"{file} describes another run; use another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        _write(file, described)

    def _note_attempt(self, run: Run, device: torch.device, epoch: int) -> None:
        file = self.path / "attempts.jsonl"
        before = file.read_bytes() if file.exists() else b""
        facts = environment(device, run.config.data.name)
        line = json.dumps({"from_epoch": epoch, "time": _now(), **facts})
        _write(file, before + f"{line}\n".encode())

    def _continued(self, make: Callable[[], Trainer], say: Callable[[str], None]) -> Trainer:
        """A trainer with the newest whole state; a fresh one if there is no state at all.

        Raises: ValueError if there are states and none can be read.
        """
        reasons = []
        for file in self.states():
            trainer = make()  # a state that fits in part leaves its marks
            try:
                state = torch.load(file, map_location=trainer.device, weights_only=True)
                trainer.load_state_dict(state)
            except Exception as error:  # a damaged file raises anything
                reasons.append(f"{file}: {error}")
                continue
            say(f"run {trainer.run}: continues after epoch {trainer.epoch}")
            return trainer
        if reasons:
            raise ValueError("\n".join([*reasons, "remove these files to train from the start"]))
        return make()

    def _save(self, trainer: Trainer) -> None:
        with atomic_path(self.path / f"state-{trainer.epoch}.pt") as part:
            torch.save(trainer.state_dict(), part)
        for old in self.states()[STATES_KEPT:]:
            old.unlink()

    def _metrics_after(self, epoch: int) -> Path:
        """The file of metrics, cut to the epochs that the trainer has done."""
        file = self.metrics_file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        kept = [line for line in lines if _epoch(line) <= epoch]
        _write(file, "".join(f"{line}\n" for line in kept).encode())
        return file

    def _end(
        self, outcome: Outcome, *, error: str | None, certificate: dict[str, Any] | None = None
    ) -> Outcome:
        ended = {"outcome": outcome, "time": _now(), "error": error, "certificate": certificate}
        _write(self.end_file, json.dumps(ended).encode())
        return outcome


def _epoch(line: str) -> float:
    """The epoch of a line of metrics; a torn line belongs to none."""
    try:
        return int(json.loads(line)["epoch"])
    except ValueError:
        return float("inf")


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as part:
        part.write_bytes(content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
