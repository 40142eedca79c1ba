"""Text of others, made safe for a terminal: every character is shown, none controls it."""

import unicodedata


def is_printable(character: str) -> bool:
    """Return whether a character is shown as itself and stays in its line.

    That excludes control characters, bidirectional overrides and characters without a width.
    """
    return character.isprintable() or unicodedata.category(character) == "Zs"


def is_one_line(text: str) -> bool:
    """Return whether every character of a text is printable."""
    return all(map(is_printable, text))


def joined_lines(text: str) -> str:
    """Return text as one line with single spaces."""
    return " ".join(text.split())


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
