"""Log files that do not fail: a run continues if the disk of its logs is full."""

import io
from contextlib import suppress
from pathlib import Path


class LogFile(io.TextIOBase):
    """A text file to append to. What cannot be written is lost."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises: OSError."""
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, text: str) -> int:
        """Write the text if that is possible."""
        with suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Write what is buffered if that is possible."""
        with suppress(OSError, ValueError):  # ValueError: the file is closed
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            self._file.close()
        super().close()
