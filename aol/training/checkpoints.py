"""The checkpoint of a run: the file of its trainer's state, with a checksum beside it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from aol.atomic import atomic_path
from aol.errors import CheckpointError, first_line
from aol.provenance import file_sha256

if TYPE_CHECKING:
    import torch


class Stream(Protocol):
    """A binary file to write to."""

    def write(self, data: Any, /) -> Any:
        """Write bytes. Raises: OSError."""

    def flush(self) -> Any:
        """Pass on what is buffered. Raises: OSError."""


class _SummedStream:
    """A stream that computes the SHA-256 of what is written to it."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.sum = stream, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.stream.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self.sum.update(data)
        return len(data)

    def flush(self) -> None:
        self.stream.flush()


def write_state(state: Mapping[str, Any], stream: Stream) -> str:
    """Write a trainer's state to a stream; return its SHA-256. Raises: OSError."""
    import torch

    summed = _SummedStream(stream)
    try:
        torch.save(state, cast("IO[bytes]", summed))  # all that it calls
    except RuntimeError:
        if summed.error:  # torch replaces it by its own
            raise summed.error from None
        raise
    return summed.sum.hexdigest()


def save_checkpoint(state: Mapping[str, Any], file: Path) -> None:
    """Write the state of a trainer and its checksum atomically. Raises: OSError."""
    with atomic_path(file) as part:
        with part.open("wb") as stream:
            checksum = write_state(state, stream)
        with atomic_path(checksum_file(file)) as beside:
            beside.write_text(checksum_line(checksum, file.name), encoding="utf-8")


def checksum_file(file: Path) -> Path:
    """Return the file with the checksum of a checkpoint, in the format of `sha256sum`."""
    return file.with_name(f"{file.name}.sha256")


def checksum_line(checksum: str, name: str) -> str:
    """Return the content of the file of a checksum."""
    return f"{checksum}  {name}\n"


def load_checkpoint(file: Path, device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Return the state of `Trainer.state_dict`, its tensors on a device.

    The file is compared with its checksum first; without one, its parts with their own.

    Raises: CheckpointError with the file if it is missing or damaged.
    """
    import torch

    try:
        _require_stored(file)
        _check_content(file)
        state = torch.load(file, map_location=device, weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file raises anything
        first = first_line(error)
        raise CheckpointError(f"{file}: is damaged or not a checkpoint: {first}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: is not a checkpoint: it holds a {type(state).__name__}")
    return state


def _check_content(file: Path) -> None:
    """Raise CheckpointError if a bit of the file has changed; `torch.load` checks nothing."""
    beside = checksum_file(file)
    if beside.exists():
        if file_sha256(file) != beside.read_text(encoding="utf-8", errors="replace").split(" ")[0]:
            raise CheckpointError(f"{file}: is damaged: it differs from {beside.name}")
        return
    with ZipFile(file) as archive:  # saved by an earlier version, or copied alone
        if damaged := archive.testzip():
            raise CheckpointError(f"{file}: is damaged: {damaged} differs from its checksum")


def _require_stored(file: Path) -> None:
    """Raise ValueError if a file is compressed: a few bytes could become gigabytes of memory.

    `torch.save` does not compress.
    """
    if is_zipfile(file):
        with ZipFile(file) as archive:
            if any(info.compress_type != ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed")
