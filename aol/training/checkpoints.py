"""The checkpoint of a run: the file of its trainer's state."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

from aol.atomic import atomic_path
from aol.errors import CheckpointError, first_line

if TYPE_CHECKING:
    import torch

    from aol.training.trainer import Trainer


def save_checkpoint(trainer: "Trainer", file: Path) -> None:
    """Write the state of a trainer atomically. Raises: OSError."""
    import torch

    with atomic_path(file) as part:
        torch.save(trainer.state_dict(), part)


def load_checkpoint(file: Path, device: "torch.device | str" = "cpu") -> dict[str, Any]:
    """Return the state of `Trainer.state_dict`, its tensors on a device.

    Raises: CheckpointError with the file if it is missing or damaged.
    """
    import torch

    try:
        _require_stored(file)
        state = torch.load(file, map_location=device, weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file raises anything
        first = first_line(error)
        raise CheckpointError(f"{file}: is damaged or not a checkpoint: {first}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: is not a checkpoint: it holds a {type(state).__name__}")
    return state


def _require_stored(file: Path) -> None:
    """Raise ValueError if a file is compressed: a few bytes could become gigabytes of memory.

    `torch.save` does not compress.
    """
    if is_zipfile(file):
        with ZipFile(file) as archive:
            if any(info.compress_type != ZIP_STORED for info in archive.infolist()):
                raise ValueError("it is compressed")
