"""The records in a run's folder, and how they are read: `aol.training.run_folder` has the files."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from reprlib import repr as shown
from types import UnionType
from typing import Any, NewType, TypeVar

from aol.config import TrainConfig, from_dict
from aol.reading import parse_json, read_limited

FIRST_YEAR = 1970
MAX_NAME = 60  # characters of a name in a message
Time = NewType("Time", str)  # ISO 8601 in UTC with milliseconds


class Outcome(StrEnum):
    """The result of training a run; a stopped one can be continued."""

    DONE = "done"
    UNSOUND = "unsound"
    DIVERGED = "diverged"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Run:
    """A run as `orchestrator plan --json` and run.json describe it."""

    key: str
    id: int
    name: str
    profile: str
    config: TrainConfig = field(metadata={"name": "settings"})

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        values = asdict(self)
        values["settings"] = values.pop("config")
        return values


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A line of attempts.jsonl: a call that trained the run."""

    from_epoch: int
    time: Time
    host: str
    device: str
    commit: str | None
    packages: dict[str, str]
    fingerprints: dict[str, str]
    diff: str | None = None
    driver: str | None = None  # of the GPU


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A line of metrics.jsonl."""

    epoch: int
    time: Time
    values: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class End:
    """The content of end.json."""

    outcome: Outcome
    time: Time
    error: str | None
    certificate: dict[str, Any] | None


Record = TypeVar("Record", Run, Attempt, Epoch, End)


def read_record(kind: type[Record], file: Path) -> Record:
    """Return the record in a file. Raises: OSError, ValueError with the file and the field."""
    content = read_limited(file)
    try:
        described = parse_json(content)
    except ValueError as error:
        raise ValueError(f"{file.name} is damaged: {error}") from error
    return parse_record(kind, described, file.name)


def read_records(kind: type[Record], file: Path) -> Iterator[Record]:
    """Yield a record per line of a file; the last line may be cut off, if the machine was lost.

    Raises: OSError, ValueError with the file, the line and the field.
    """
    lines = read_limited(file).splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{file.name}, line {number}"
        try:
            content = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                return
            raise ValueError(f"{where} is damaged: {error}") from error
        yield parse_record(kind, content, where)


def parse_record(kind: type[Record], content: Any, where: str) -> Record:
    """Return the record that a JSON object describes. Raises: ValueError with the field."""
    content = OBJECT(where, content)
    values = {}
    for item in fields(kind):
        name = item.metadata.get("name", item.name)
        if name in content:
            values[item.name] = CONVERTERS[item.type](f"{where}: {name}", content[name])
        elif item.default is MISSING:
            raise ValueError(f"{where}: {name}: is missing")
    return kind(**values)


# Return a value as a field holds it. Raise: ValueError that starts with the first argument.
Converter = Callable[[str, Any], Any]


def _whole_number(where: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"{where}: must be a whole number from 0 to 2**63 - 1, got {shown(value)}")
    return value


def _instance(kind: type | UnionType, described: str) -> Converter:
    def convert(where: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"{where}: must be {described}, got {shown(value)}")
        return value

    return convert


TEXT = _instance(str, "a text")
OBJECT = _instance(dict, "an object")


def _object_of(convert: Converter) -> Converter:
    return lambda where, value: {
        name: convert(f"{where}.{name[:MAX_NAME]}", inner)
        for name, inner in OBJECT(where, value).items()
    }


def _number(where: str, value: Any) -> float:
    if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{where}: must be a finite number, got {shown(value)}")
    return float(value)


def _time(where: str, value: Any) -> str:
    try:
        time = datetime.fromisoformat(TEXT(where, value))
        if time.tzinfo is None or not FIRST_YEAR < time.year < datetime.max.year:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{where}: must be a time of ISO 8601 with its zone, got {shown(value)}"
        ) from None
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _end(where: str, value: Any) -> Outcome:
    ends = (Outcome.DONE, Outcome.UNSOUND, Outcome.DIVERGED)
    if value not in ends:
        raise ValueError(f"{where}: must be {ends[0]}, {ends[1]} or {ends[2]}, got {shown(value)}")
    return Outcome(value)


def _config(where: str, value: Any) -> TrainConfig:
    try:
        return from_dict(OBJECT(where, value))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: are not those of this version: {error!r}") from error


CONVERTERS: dict[Any, Converter] = {
    int: _whole_number,
    str: TEXT,
    str | None: _instance(str | None, "a text or null"),
    dict[str, str]: _object_of(TEXT),
    dict[str, float]: _object_of(_number),
    dict[str, Any] | None: _instance(dict | None, "an object or null"),
    Time: _time,
    Outcome: _end,
    TrainConfig: _config,
}
