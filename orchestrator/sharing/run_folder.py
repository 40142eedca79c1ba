"""The run folders that `python -m aol` writes, as runs of the orchestrator and checked."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aol.catalog import DATASETS
from aol.config import TrainConfig
from aol.training.records import Attempt, End, Epoch
from aol.training.run_folder import RunFolder
from orchestrator.analysis.margins import margins_agree, read_margins
from orchestrator.errors import RecordError
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Status

MAX_FOLDERS = 10_000


@dataclass(frozen=True)
class RunFolderContents:
    """A run with everything that its folder holds of it."""

    folder: Path
    run: RunSpec
    attempts: tuple[Attempt, ...]  # at least one
    epochs: tuple[Epoch, ...]  # from the first on, none missing
    end: End | None  # None if the run has not ended
    margins: bytes | None

    @property
    def status(self) -> Status:
        """The run's status in the store."""
        return Status(self.end.outcome) if self.end else Status.INTERRUPTED

    @property
    def state(self) -> Path | None:
        """The finished run's last state, if the folder has it."""
        file = RunFolder(self.folder).state(len(self.epochs))
        return file if self.status is Status.DONE and file.exists() else None

    @property
    def last_seen(self) -> str:
        """The time when the run ended, or of its latest epoch or attempt."""
        return (self.end or (self.epochs or self.attempts)[-1]).time


def find_run_folders(folder: Path) -> list[Path]:
    """Return the run folders in a folder, or the folder itself. Raises: RecordError without any."""
    candidates = [folder, *sorted(folder.glob("*"))]
    found = [path for path in candidates if RunFolder(path).run_file.exists()]
    if len(found) > MAX_FOLDERS:
        raise RecordError(f"{folder}: has {len(found)} run folders; {MAX_FOLDERS} are allowed")
    if not found:
        raise RecordError(f"{folder}: no run.json there or one level below; is it an --out folder?")
    return found


def read_run_folder(folder: Path) -> RunFolderContents:
    """Return the contents of a run folder, checked. Raises: RecordError."""
    files = RunFolder(folder)
    try:
        described = files.run()
        run = RunSpec(
            id=described.id,
            name=described.name,
            profile=described.profile,
            train=described.config,
        )
        found = RunFolderContents(
            folder, run, files.attempts(), files.epochs(), files.end(), files.margins()
        )
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder}: cannot be read: {error}") from error
    if problems := list(_find_problems(found, described.key)):
        raise RecordError("\n".join(f"{folder}: {problem}" for problem in problems))
    return found


def _find_problems(found: RunFolderContents, key: str) -> Iterator[str]:
    """Yield a line for each contradiction between the files."""
    config = found.run.train
    if found.run.key != key:
        yield f"run.json has the key {key}, and settings of {found.run.key}"
    if not found.attempts:
        yield "attempts.jsonl is empty: it names no machine that trained the run"
    if [item.epoch for item in found.epochs] != list(range(1, len(found.epochs) + 1)):
        yield "metrics.jsonl does not have every epoch once, in order"
    if any(item.fingerprints != DATASETS[config.data.name].fingerprints for item in found.attempts):
        yield f"it was trained on other images than {config.data.name}"
    if found.status in (Status.DONE, Status.UNSOUND):
        yield from _find_problems_at_the_end(found, config)


def _find_problems_at_the_end(found: RunFolderContents, config: TrainConfig) -> Iterator[str]:
    import numpy as np

    if len(found.epochs) != config.epochs:
        wanted = pluralize(config.epochs, "epoch")
        yield f"it is {found.status} with {len(found.epochs)} of {wanted}"
        return
    try:
        margins = read_margins(found.margins or b"")
    except ValueError:
        margins = read_margins(b"")
    if len(margins) != config.data.test_images or not np.isfinite(margins).all():
        yield "margins.f32 does not have a finite margin for every test image"
    elif not margins_agree(margins, 0.0, found.epochs[-1].values.get("accuracy", -1.0)):
        yield "the accuracy of margins.f32 is not that of the last epoch"
