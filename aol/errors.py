"""The errors of `aol` that a command reports without a traceback, each with an exit code."""

import errno

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # a full disk, a read-only one


class AOLError(Exception):
    """Base of these errors: 1 is the exit code of a runtime failure, 2 of wrong input."""

    exit_code: int = 1


class DataError(AOLError):
    """Raised when no source has a dataset, or it cannot be kept; lists what was tried."""


class CheckpointError(AOLError):
    """Raised when a saved state cannot be read or belongs to another run."""


class SavingError(AOLError):
    """Raised when the state of a run that ends or stops cannot be saved."""


class ModelError(AOLError):
    """Raised when a model cannot be written, read or certified."""

    exit_code = 2


class ImageFileError(AOLError):
    """Raised when files are not 32 x 32 RGB images; one line per file."""

    exit_code = 2


class RadiusError(AOLError, ValueError):
    """Raised when a text is not a radius."""

    exit_code = 2


def is_unwritable(error: BaseException | None) -> bool:
    """Return whether an error, or its cause, is that a disk is full or read-only."""
    if error is None:
        return False
    failed = isinstance(error, OSError) and error.errno in UNWRITABLE
    return failed or is_unwritable(error.__cause__)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
