import json
import math
from base64 import b64decode

import pytest

from orchestrator.cli.query import result_json, result_text
from orchestrator.errors import RequestError

COLUMNS = ["key", "share", "count", "values"]
ROWS = [("12e34", 0.1 + 0.2, 3, b"\x00\xff"), ("b", None, None, b"x")]


def test_the_table_has_unchanged_text_rounded_floats_and_no_bytes():
    header, _, first, second = result_text(COLUMNS, ROWS).splitlines()

    assert header.split() == COLUMNS
    assert first.split() == ["12e34", "0.3", "3", "<2", "bytes>"]
    assert second.split() == ["b", "<1", "byte>"]


def test_numbers_are_right_aligned_and_text_is_left_aligned():
    header, _, first, second = result_text(
        ["a", "b"], [("long text", 1), ("x", 20000)]
    ).splitlines()

    assert (first.index("long"), second.index("x"), header.index("a")) == (0, 0, 0)
    assert len(first) == len(second) == len(header)


def test_a_query_without_rows_prints_its_columns():
    assert result_text(["a", "b"], []).split()[:2] == ["a", "b"]
    assert json.loads(result_json(["a", "b"], [])) == []


def test_the_json_is_valid_and_has_the_bytes():
    first, second = json.loads(result_json(COLUMNS, ROWS))

    assert b64decode(first["values"]) == b"\x00\xff"
    assert (first["key"], first["count"], second["share"]) == ("12e34", 3, None)


def test_repeated_column_names_are_an_error_in_json_only():
    with pytest.raises(
        RequestError, match="two columns are called 'a'; rename one with AS"
    ) as caught:
        result_json(["a", "b", "a"], [(1, 2, 3)])

    assert caught.value.exit_code == 2
    assert result_text(["a", "b", "a"], [(1, 2, 3)]).splitlines()[-1].split() == ["1", "2", "3"]


def test_infinities_are_text_in_json():
    def refuse(name):
        raise AssertionError(name)

    text = result_json(["x"], [(math.inf,)])

    assert json.loads(text, parse_constant=refuse) == [{"x": "inf"}]
