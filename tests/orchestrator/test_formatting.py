import json
from pathlib import Path

import pytest

from orchestrator.formatting import (
    format_command,
    format_duration,
    format_percent,
    format_significant,
    format_table,
    pluralize,
    to_json,
)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (None, False, "–"),
        (70.34, False, "70.3"),
        (-0.04, False, "0.0"),
        (0.25, True, "+0.2"),
        (-1.0, True, "-1.0"),
    ],
)
def test_percentages_have_the_papers_decimal_and_no_negative_zero(value, signed, text):
    assert format_percent(value, signed=signed) == text


@pytest.mark.parametrize(
    ("count", "nouns", "text"),
    [
        (0, ("seed",), "0 seeds"),
        (1, ("seed",), "1 seed"),
        (1234, ("run",), "1,234 runs"),
        (1.0, ("CPU",), "1 CPU"),
        (0.5, ("percentage point",), "0.5 percentage points"),
        (1, ("differs", "differ"), "1 differs"),
        (2, ("run is done", "runs are done"), "2 runs are done"),
    ],
)
def test_only_a_count_of_one_is_singular(count, nouns, text):
    assert pluralize(count, *nouns) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.000333333, "0.00033"),
        (0.0999, "0.10"),
        (0.999, "1.0"),
        (3.333, "3.3"),
        (9.97, "10"),
        (33.3333, "33"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_have_two_significant_digits_and_all_integer_digits(value, text):
    assert format_significant(value) == text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0 s"),
        (1.234, "1.2 s"),
        (8.04, "8 s"),
        (9.96, "10 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (12 * 60, "12 min"),
        (89 * 60, "89 min"),
        (90 * 60, "1.5 h"),
        (3.5 * 3600, "3.5 h"),
        (47.6 * 3600, "48 h"),
        (48 * 3600, "2 days"),
        (40 * 86400, "40 days"),
        (4000 * 86400, "4000 days"),
    ],
)
def test_durations_have_a_readable_unit(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (3.4, "3 s"),
        (0.0, "0 s"),
        (5.4 * 3600, "5 h"),
        (47 * 3600, "50 h"),
        (276 * 86400, "300 days"),
    ],
)
def test_a_rough_duration_has_one_significant_digit(seconds, words):
    assert format_duration(seconds, rough=True) == words


def test_a_command_is_quoted_for_a_shell():
    command = format_command("run", Path("my file.yaml"), "--only", 3, python="my env/python")

    assert command == "'my env/python' -m orchestrator run 'my file.yaml' --only 3"
    assert format_command("plan") == "python -m orchestrator plan"


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--store", "postgresql://u:secret@h/db"], '--store "$AOL_STORE"'),
        (["--store=postgresql://u:secret@h/db"], '--store="$AOL_STORE"'),
        (["--store", "postgresql://h/db?password=a secret"], '--store "$AOL_STORE"'),
        (["--store", "postgresql://u@h/db"], "--store postgresql://u@h/db"),
        (["--only", "http://u:secret@h"], "--only 'http://***@h'"),
    ],
)
def test_a_command_names_a_variable_in_place_of_a_password(words, printed):
    command = format_command("report", *words, "x & y.yaml")

    assert command == f"python -m orchestrator report {printed} 'x & y.yaml'"


def test_a_table_has_a_line_per_row_whatever_its_text():
    table = format_table([["a\nb\x1b[2J", 1], ["c", "\u202ed"]], ["x\ny", "z"], left={"x\ny"})

    assert len(table.splitlines()) == 4
    assert r"a\nb\x1b[2J" in table
    assert r"\u202ed" in table


def test_json_has_escapes_for_what_a_terminal_would_interpret():
    value = {"a\x9b": ["\u202eb\U000e0001", "ü 🙂", "\x1b"]}

    text = to_json(value)

    assert text.replace("\n", "").isprintable()
    assert json.loads(text) == value
    assert "ü 🙂" in text
