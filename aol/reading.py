"""Reading files that others may have written. Sizes are limited; mistakes raise ValueError."""

import json
import os
import stat
from pathlib import Path
from typing import Any

TEXT_LIMIT = 64 * 2**20  # bytes of a file of JSON or of lines of it


def read_limited(file: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Return the content of a regular file.

    Raises: OSError, ValueError if the file is larger than `limit` bytes or not a regular file.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe's writer
    with open(descriptor, "rb") as stream:  # noqa: PTH123
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise ValueError(f"{file.name} is {kind}")
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{file.name} is larger than {limit} bytes")
    return content


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises: ValueError, also if it is nested too deeply."""
    try:
        value = json.loads(text)
        if r"\ud" in (text.decode() if isinstance(text, bytes) else text).lower():
            json.dumps(value, ensure_ascii=False).encode()  # rejects halves of a surrogate pair
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value
