"""Masking of passwords and tokens wherever text leaves the program."""

import logging
import re

from aol.text import printable_lines

MASK = "***"
COLON = r"(?::|%3A)"
MASKED = (
    # A password may have any character but a space, so it ends at the last @. A user name on the
    # web can be a token. As a path, a URL has only one slash.
    (
        re.compile(rf"(https?:/{{1,2}})(?:[^\s/:@]*{COLON}\S*|[^\s/@]+)(?=@)", re.IGNORECASE),
        rf"\1{MASK}",
    ),
    (re.compile(rf"(:/{{1,2}}(?!/)[^\s/:@%]*{COLON})\S*(?=@)", re.IGNORECASE), rf"\1{MASK}"),
    (
        re.compile(
            r"([?&;#][\w.-]*(?:pass|pwd|token|secret|key|sig|credential)[\w.-]*=)[^\s&;#\"']+",
            re.IGNORECASE,
        ),
        rf"\1{MASK}",
    ),
)


def mask_secrets(text: str) -> str:
    """Return the text with the passwords and tokens of its URLs replaced by `***`."""
    for pattern, replacement in MASKED:
        text = pattern.sub(replacement, text)
    return text


def has_secret(text: str) -> bool:
    """Return whether the text has a URL with a password or token."""
    return mask_secrets(text) != text


class SafeFormatter(logging.Formatter):
    """Formats log messages and their tracebacks without passwords and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a message."""
        return printable_lines(mask_secrets(super().format(record)))
