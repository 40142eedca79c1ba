"""Paths of the command line."""

from pathlib import Path


def parse_path(text: str) -> Path:
    """Return a path; shells expand `~` only at the start of a word, and not in `--out=~/x`."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return Path(text)
