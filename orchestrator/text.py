"""Text of users and other programs, made safe to print, log and store.

Passwords are masked wherever text leaves the program. Control characters are escaped: those that
move a cursor or start a line, also bidirectional overrides and characters without a width.
"""

import logging
import re
import unicodedata

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


def is_printable(character: str) -> bool:
    """Return whether a character is shown as itself and stays in its line."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def is_one_line(text: str) -> bool:
    """Return whether every character of a text is printable."""
    return all(map(is_printable, text))


def printable(text: str) -> str:
    """Return the text in one line, with escapes for what is not printable."""
    if text.isprintable():
        return text
    return "".join(
        one if is_printable(one) else one.encode("unicode_escape").decode() for one in text
    )


def printable_lines(text: str) -> str:
    """Return text of several lines with escapes for what is not printable."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(printable(line.expandtabs()) for line in lines)


class SafeFormatter(logging.Formatter):
    """Formats log messages and their tracebacks without passwords and control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a message."""
        return printable_lines(mask_secrets(super().format(record)))
