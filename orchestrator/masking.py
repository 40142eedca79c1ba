"""Masking of passwords and tokens wherever text leaves the program."""

import logging
import re

from aol.text import printable_lines

MASK = "***"
COLON = "(?::|%3A)"
SLASHES = "/{1,2}(?!/)"  # one where a URL was taken for a path
# A password may have any character but a space, so it ends at the last @
PASSWORD = re.compile(rf"(:{SLASHES}(?:[^\s/:%]|%(?!3A))*{COLON})\S*(?=@)", re.IGNORECASE)
# On the web a user name can be a token
WEB_USER = re.compile(rf"(https?:{SLASHES})(?:[^\s/:@]*{COLON}\S*|[^\s/@]+)(?=@)", re.IGNORECASE)
NAMES = "pass|pwd|token|secret|key|sig|credential"
PARAMETER = re.compile(rf"([?&;#][\w.-]*(?:{NAMES})[\w.-]*=)[^\s&;#]+", re.IGNORECASE)


def mask_secrets(text: str) -> str:
    """Return the text with the passwords and tokens of its URLs replaced by `***`."""
    for pattern in (WEB_USER, PASSWORD, PARAMETER):
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def has_secret(location: str) -> bool:
    """Return whether a location is a URL with a password or token."""
    return "://" in location and mask_secrets(location) != location


class SafeFormatter(logging.Formatter):
    """Formats log messages and their tracebacks without passwords and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a message."""
        return printable_lines(mask_secrets(super().format(record)))
