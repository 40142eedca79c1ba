"""What `python -m aol` leaves in a run's folder, read back and checked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, FiniteFloat, ValidationError

from aol.catalog import DATASETS
from aol.config import TrainConfig, from_dict
from orchestrator.analysis.margins import margins_agree, read_margins
from orchestrator.errors import RecordError
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Status

Stamp = Annotated[  # a time as the store writes it
    AwareDatetime,
    AfterValidator(lambda time: time.astimezone(UTC).isoformat(timespec="milliseconds")),
]
Line = TypeVar("Line", bound=BaseModel)


class Description(BaseModel):
    """What run.json says."""

    key: str
    id: int
    name: str
    profile: str
    settings: Annotated[Any, AfterValidator(from_dict)]


class Attempt(BaseModel):
    """A line of attempts.jsonl: a call that trained the run."""

    from_epoch: int
    time: Stamp
    host: str
    device: str
    commit: str | None
    diff: str | None = None
    packages: dict[str, str]
    fingerprints: dict[str, str]


class Epoch(BaseModel):
    """A line of metrics.jsonl."""

    epoch: int
    time: Stamp
    values: dict[str, FiniteFloat]


class End(BaseModel):
    """What end.json says."""

    outcome: Literal["done", "unsound", "diverged"]
    time: Stamp
    error: str | None
    certificate: dict[str, Any] | None


@dataclass(frozen=True)
class RunFolderContents:
    """What a folder holds of a run."""

    folder: Path
    run: RunSpec
    attempts: tuple[Attempt, ...]  # at least one
    epochs: tuple[Epoch, ...]  # from the first on, none missing
    end: End | None  # None if the run has not ended
    margins: bytes | None

    @property
    def status(self) -> Status:
        """What the run is in the store."""
        return Status(self.end.outcome) if self.end else Status.INTERRUPTED

    @property
    def state(self) -> Path | None:
        """The finished run's last state, if the folder has it."""
        file = self.folder / f"state-{len(self.epochs)}.pt"
        return file if self.status is Status.DONE and file.exists() else None

    @property
    def last_sign(self) -> str:
        """When the run ended, or was last seen to go on."""
        if self.end:
            return str(self.end.time)
        return str((self.epochs or self.attempts)[-1].time)


def find_run_folders(folder: Path) -> list[Path]:
    """The run folders in a folder, or the folder itself. Raises: RecordError if there is none."""
    found = [folder] if (folder / "run.json").exists() else []
    found += sorted(path.parent for path in folder.glob("*/run.json"))
    if not found:
        raise RecordError(f"{folder}: no run.json there or one level below; is it an --out folder?")
    return found


def read_run_folder(folder: Path) -> RunFolderContents:
    """What a folder holds, checked. Raises: RecordError."""
    try:
        described = _parsed(Description, folder / "run.json")
        found = RunFolderContents(
            folder,
            RunSpec(
                id=described.id,
                name=described.name,
                profile=described.profile,
                train=described.settings,
            ),
            tuple(_lines(Attempt, folder / "attempts.jsonl")),
            tuple(_lines(Epoch, folder / "metrics.jsonl")),
            _parsed(End, folder / "end.json") if (folder / "end.json").exists() else None,
            (folder / "margins.f32").read_bytes() if (folder / "margins.f32").exists() else None,
        )
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder}: cannot be read: {error}") from error
    if reasons := list(_damages(found, described.key)):
        raise RecordError("\n".join(f"{folder}: {reason}" for reason in reasons))
    return found


def _parsed(model: type[Line], file: Path, text: str | None = None, line: int = 0) -> Line:
    """The file, or one line of it. Raises: OSError, ValueError that names file and field."""
    where = file.name + (f", line {line}" if line else "")
    try:
        return model.model_validate(json.loads(text or file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {field}: {first['msg']}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is damaged: {error}") from error


def _lines(model: type[Line], file: Path) -> Iterator[Line]:
    """The lines of a file; the last one may be torn, if the machine was lost."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            if number == len(lines):
                return
        yield _parsed(model, file, line, number)


def _damages(found: RunFolderContents, key: str) -> Iterator[str]:
    """What contradicts what."""
    config = found.run.train
    if found.run.key != key:
        yield f"its settings make it {found.run.key}, and it calls itself {key}"
    if not found.attempts:
        yield "attempts.jsonl does not say where it was trained"
    if [item.epoch for item in found.epochs] != list(range(1, len(found.epochs) + 1)):
        yield "metrics.jsonl does not have every epoch once, in order"
    if any(item.fingerprints != DATASETS[config.data.name].fingerprints for item in found.attempts):
        yield f"it was trained on other images than {config.data.name}"
    if found.status in (Status.DONE, Status.UNSOUND):
        yield from _contradictions_at_the_end(found, config)


def _contradictions_at_the_end(found: RunFolderContents, config: TrainConfig) -> Iterator[str]:
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
        yield "margins.f32 is not a finite margin per image"
    elif not margins_agree(margins, 0.0, found.epochs[-1].values.get("accuracy", -1.0)):
        yield "the accuracy that margins.f32 gives is not that of the last epoch"
