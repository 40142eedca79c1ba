import pytest

from aol.text import joined_lines, printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nError: b", r"a\nError: b"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("a\u200bb\ufeffc\u2028d", r"a\u200bb\ufeffc\u2028d"),
        ("\ud800", r"\ud800"),
        ("Grün\u00a0🙂 √2 — ñ", "Grün\u00a0🙂 √2 — ñ"),
    ],
)
def test_what_is_not_printable_is_escaped_in_one_line(text, shown):
    assert printable(text) == shown


def test_joined_lines_have_single_spaces():
    assert joined_lines(" a\tb\n\n  c\u2028d\n") == "a b c d"


def test_text_of_several_lines_keeps_them():
    assert printable_lines("a\tb\r\n  \x1bc\n") == "a       b\n  \\x1bc\n"
