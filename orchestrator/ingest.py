"""Takes the folders that `python -m aol` wrote into the store, as if the runs had trained here."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aol.config import FINGERPRINTS, from_dict
from orchestrator.provenance import Provenance
from orchestrator.spec import RunSpec
from orchestrator.store import Status, Store, StoredRun

BYTES_PER_MARGIN = 4
TIE = 1e-6
STATUS = {"done": Status.DONE, "unsound": Status.UNSOUND, "diverged": Status.DIVERGED}


class IngestError(Exception):
    """A folder that is damaged, or that says something else than the store, a line per reason."""

    exit_code = 1


@dataclass(frozen=True)
class TrainedElsewhere:
    """What a folder holds of a run."""

    folder: Path
    run: RunSpec
    environment: dict[str, Any]
    epochs: tuple[dict[str, Any], ...]  # {"epoch": 1, "time": ..., "values": {...}}, from 1 on
    end: dict[str, Any]  # empty if the run has not ended
    margins: bytes | None

    @property
    def status(self) -> Status:
        """What the run is in the store."""
        return STATUS[self.end["outcome"]] if self.end else Status.INTERRUPTED


def folders_in(folder: Path) -> list[Path]:
    """The run folders in a folder, or the folder itself. Raises: IngestError if there is none."""
    found = [folder] if (folder / "run.json").exists() else []
    found += sorted(path.parent for path in folder.glob("*/run.json"))
    if not found:
        raise IngestError(f"{folder}: no run.json there or one level below; is it an --out folder?")
    return found


def read(folder: Path) -> TrainedElsewhere:
    """What a folder holds, checked. Raises: IngestError."""
    try:
        described = _json(folder / "run.json")
        run = RunSpec(
            id=described["id"],
            name=described["name"],
            profile=described["profile"],
            train=from_dict(described["settings"]),
        )
        ended = folder / "end.json"
        margins = folder / "margins.f32"
        found = TrainedElsewhere(
            folder,
            run,
            _json(folder / "environment.json"),
            tuple(_epochs(folder / "metrics.jsonl")),
            _json(ended) if ended.exists() else {},
            margins.read_bytes() if margins.exists() else None,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise IngestError(f"{folder}: cannot be read: {error!r}") from error
    if reasons := list(_damages(found, described["key"])):
        raise IngestError("\n".join(f"{folder}: {reason}" for reason in reasons))
    return found


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _epochs(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics; the last one may be torn, if the machine was lost."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise ValueError(f"line {number} of {file.name} is damaged") from None


def _damages(found: TrainedElsewhere, key: str) -> Iterator[str]:
    """What contradicts what."""
    config = found.run.train
    if found.run.key != key:
        yield f"its settings make it {found.run.key}, and it calls itself {key}"
    if [item["epoch"] for item in found.epochs] != list(range(1, len(found.epochs) + 1)):
        yield "metrics.jsonl does not have every epoch once, in order"
    if found.environment["fingerprints"] != FINGERPRINTS[config.data.name]:
        yield f"it was trained on other images than {config.data.name}"
    if found.status in (Status.DONE, Status.UNSOUND):
        if len(found.epochs) != config.epochs:
            yield f"it is {found.status} with {len(found.epochs)} of {config.epochs} epochs"
        elif not _agree(found.margins or b"", found.epochs[-1]["values"]["accuracy"]):
            yield "the accuracy that margins.f32 gives is not that of the last epoch"


def _agree(margins: bytes, accuracy: float) -> bool:
    """Whether as many margins are positive as images are right; ties may count either way."""
    import numpy as np

    if not margins or len(margins) % BYTES_PER_MARGIN:
        return False
    values = np.frombuffer(margins, "<f4")
    right, tied = np.mean(values > 0), np.mean(np.abs(values) < TIE)
    return bool(abs(right - accuracy) <= tied + 1e-9)


def take(found: TrainedElsewhere, store: Store, *, replace: bool = False) -> bool:
    """Write a run into the store; False if the store has it already, or more of it.

    Raises: IngestError if the store holds other numbers and they are not to be replaced.
    """
    run = found.run
    stored = next(iter(store.runs([run.key])), None)
    if stored and not replace:
        if stored.alive:
            raise IngestError(f"{found.folder}: run {run.id} is being trained by {stored.driver}")
        if _differs(found, stored, store):
            raise IngestError(
                f"{found.folder}: the store has other numbers of run {run.id} ({run.key}), "
                f"{stored.status} after epoch {stored.epoch}; --replace takes the folder's"
            )
        if (stored.status, stored.epoch) == (found.status, len(found.epochs)):
            return False
        ended = stored.status in STATUS.values()
        if stored.epoch > len(found.epochs) or (ended and not found.end):
            return False
    _write(found, store)
    return True


def _differs(found: TrainedElsewhere, stored: StoredRun, store: Store) -> bool:
    """Whether an epoch that both have was measured differently."""
    known = store.metrics(stored.key)
    return any(known.get(item["epoch"], item["values"]) != item["values"] for item in found.epochs)


def _write(found: TrainedElsewhere, store: Store) -> None:
    run, facts = found.run, found.environment
    parts = facts["fingerprints"]
    origin = Provenance(facts["commit"], facts["packages"], f"{parts['train']}-{parts['test']}")
    store.forget(run.key)
    store.queue([run])
    store.start(run, origin, at=facts["time"])
    store.place(run.key, facts["host"], facts["device"], 0)
    for item in found.epochs:
        store.record(run.key, item["epoch"], item["values"], at=item["time"])
    store.finish(
        run.key,
        found.status,
        error=found.end.get("error"),
        margins=found.margins,
        certificate=found.end.get("certificate"),
        at=found.end.get("time"),
    )
