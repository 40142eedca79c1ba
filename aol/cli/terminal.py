"""Output to terminals of any encoding."""

import io
import sys


def use_terminal_encoding() -> None:
    """Replace the characters that a terminal, a pipe or a file of another encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
