import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec.source import (
    Document,
    Mistake,
    Place,
    parse_yaml,
    read_yaml,
    spec_error,
)

MERGE = "`<<` merges mappings: write `<<: *anchor` or `<<: [*one, *two]`"
PIECES = [
    *("a", "b: ", "- ", "? ", "\n", "  ", "\t", "\0", "{", "}", "[", "]", ",", "'", '"', "#", "| "),
    *("&x ", "*x", "<<: ", "<<", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!set ", "!x "),
    *("%YAML 9.9\n", "---", "...", "0x1f", "1:30", "2001-99-01", "yes", ".nan", "\\UFFFFFFFF"),
]
DEEP = "is nested too deeply; 50 levels are allowed"
MANY = "there are more than 10000 values; each alias counts as a copy"
HALF = r"half of a surrogate pair is not a character, got '\ud800'"
OUT_OF_RANGE = r"a character written as \U... or the version of %YAML does not exist"
NO_TIME = "cannot be read as timestamp, got '0001-01-01T00:00:00+99:99'"


def problems_of(path):
    """
    Return the problems of a file, whether the rest can be read or not.
    """
    try:
        problems = spec_error(read_yaml(path).mistakes).problems
    except SpecError as error:
        problems = error.problems
    return [line.replace(str(path), "file") for line in problems]


@pytest.fixture
def written(tmp_path):
    """
    Return a function that writes text or bytes to a YAML file and returns its path.
    """

    def write(content):
        path = tmp_path / "runs.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_data_is_plain_python(written):
    document = read_yaml(written("a: {b: [1, 2.5, yes, true, 1e-3, text]}\nc:\n"))

    assert document.data == {"a": {"b": [1, 2.5, "yes", True, 1e-3, "text"]}, "c": None}
    assert type(document.data["a"]["b"]) is list


def test_every_nested_value_has_its_line(written):
    path = written("# a comment\nname: x\nruns:\n  - {id: 0, model: {kind: fc}}\n  - id: 1\n")
    document = read_yaml(path)

    assert document.lines == {
        (): 2,
        ("name",): 2,
        ("runs",): 3,
        ("runs", 0): 4,
        ("runs", 0, "id"): 4,
        ("runs", 0, "model"): 4,
        ("runs", 0, "model", "kind"): 4,
        ("runs", 1): 5,
        ("runs", 1, "id"): 5,
    }


def test_lines_of_a_multi_line_flow_mapping_are_the_keys_own(written):
    document = read_yaml(written("a: {\n  b: 1,\n  c:\n    2\n}\n"))

    assert document.where(("a", "c")).line == 3


def test_a_missing_value_is_placed_at_the_innermost_part_that_exists(written):
    path = written("name: x\nruns:\n  - id: 0\n    model:\n      kind: fc\n")
    document = read_yaml(path)

    assert str(document.where(("runs", 0, "model", "size"))) == f"{path}:4"
    assert document.where(("runs", 7)).line == 2
    assert document.where(("nowhere",)).line == 1
    assert Document("", "x.yaml").where(("a",)) == Place("x.yaml", 1)


@pytest.mark.parametrize(
    "text", [b"a: 1\r\nb:\r\n  - c: 1\r\n", b"\xef\xbb\xbfa: 1\nb:\n  - c: 1\n"]
)
def test_windows_line_ends_and_byte_order_marks_are_read(written, text):
    document = read_yaml(written(text))

    assert document.data == {"a": 1, "b": [{"c": 1}]}
    assert document.where(("b", 0, "c")).line == 3


# Anchors


def test_an_alias_is_the_same_data_at_the_line_of_its_anchor(written):
    document = read_yaml(written("a: &x\n  b: 1\nc:\n  *x\nd: [*x]\n"))

    assert document.data == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}]}
    assert [document.where(keys).line for keys in (("c",), ("c", "b"), ("d", 0, "b"))] == [3, 2, 2]


@pytest.mark.parametrize(
    "merge",
    ["<<: *one\n  c: 9", "c: 9\n  <<: *one", "<<: [*two, *one]\n  c: 9", "<<: *both\n  c: 9"],
)
def test_own_keys_override_merged_ones_which_have_the_line_of_their_anchor(written, merge):
    """
    Of several merged mappings the first that has a key gives it.
    """
    anchors = "one: &one\n  b: 1\n  c: 2\ntwo: &two\n  c: 3\nboth: &both {<<: [*one, *two]}\n"
    document = read_yaml(written(f"{anchors}d:\n  {merge}\n"))

    assert document.data["d"] == {"b": 1, "c": 9}
    assert document.where(("d", "b")).line == 2
    assert document.where(("d", "c")).line in (8, 9)


def test_the_first_of_merged_mappings_wins(written):
    document = read_yaml(written("a: &a {x: 1}\nb: &b {x: 2, y: 3}\nc: {<<: [*a, *b]}\n"))

    assert document.data["c"] == {"x": 1, "y": 3}


def test_a_repeated_anchor_means_the_latest(written):
    assert read_yaml(written("a: &x 1\nb: *x\nc: &x 2\nd: *x\n")).data == {
        "a": 1,
        "b": 1,
        "c": 2,
        "d": 2,
    }


def test_a_quoted_merge_key_is_a_word(written):
    assert read_yaml(written("'<<': 1\n")).data == {"<<": 1}


# Mistakes


def test_all_repeated_keys_are_reported_at_once_with_both_lines(written):
    path = written("a: 1\nb: {c: 1,\n  c: 2}\na: 3\nd:\n  - {e: 1, e: 1}\n")

    assert problems_of(path) == [
        "file:3: `c` is given here and in line 2; keep one",
        "file:4: `a` is given here and in line 1; keep one",
        "file:6: `e` is given here and in line 6; keep one",
    ]


def test_a_key_that_is_a_list_is_refused_and_the_rest_still_read(written):
    path = written("? [a, b]\n: 1\nc: 1\nc: 2\n")

    assert problems_of(path) == [
        "file:1: a key must be a word or a number",
        "file:4: `c` is given here and in line 3; keep one",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "file: is empty, a mapping with `runs:` is needed"),
        ("# only a comment\n", "file: is empty, a mapping with `runs:` is needed"),
        ("- 1\n- 2\n", "file: is a list, a mapping with `runs:` is needed"),
        ("just text", "file: is a str, a mapping with `runs:` is needed"),
        (b"name: caf\xe9\n", "file: byte 9 is not UTF-8; save it as UTF-8"),
        ("a: [1\nb: 2\n", "file:2: expected ',' or ']', but got ':'"),
        ("a: 1\nb: *nowhere\n", "file:2: found undefined alias 'nowhere'"),
        ("a:\n\t- 1\n", "file:2: there is a tab; indent with spaces"),
        ("a: 1\nb: x\x07\n", "file:2: the character #x0007 is not allowed"),
        ("a: 1\nb: 2020-13-45\n", "file:2: cannot be read as timestamp, got '2020-13-45'"),
        ("a: 1\nb: !!int x\n", "file:2: cannot be read as int, got 'x'"),
        ("a: 1\nb: !!bool ''\n", "file:2: cannot be read as bool, got ''"),
        ("a:\n%YAML 9.9\n", "file: %YAML names an unknown version"),
        ('a: "\\UFFFFFFFF"\n', f"file: {OUT_OF_RANGE}"),
        ('a: "\\U00110000"\n', f"file: {OUT_OF_RANGE}"),
        (f"%YAML {5000 * '1'}.1\n---\na: 1\n", f"file: {OUT_OF_RANGE}"),
        ('a: "\\ud800"\n', f"file:1: {HALF}"),
        ('"\\ud800": 1\n', f"file:1: {HALF}"),
        ("a: 0001-01-01T00:00:00+99:99\n", f"file:1: {NO_TIME}"),
        ("a: 1\nb: [&x [*x]]\n", "file:2: an anchor refers to itself"),
        ("a: 1\nb: &x {<<: *x}\n", "file:2: an anchor refers to itself"),
        ("a: 1\nb: {<<: 3}\n", f"file:2: {MERGE}"),
        ("a: 1\nb: {<<: [3]}\n", f"file:2: {MERGE}"),
        (f"a: 1\nb: {51 * '['}{51 * ']'}\n", f"file:2: {DEEP}"),
        (f"a: {500 * '['}{500 * ']'}\n", f"file:1: {DEEP}"),
        (f"a: {500 * '{b: '}{500 * '}'}\n", f"file:1: {DEEP}"),
        (f"a: [{20_000 * '1,'}]\n", f"file:1: {MANY}"),
        (f"a: {2**20 * 'x'}\n", f"file: is larger than {2**20} bytes"),
        (f"a: 1\nb: {2**63}\n", f"file:2: whole numbers must be below 2**63, got {2**63}"),
        (f"a: 1\nb: {5000 * '9'}\n", f"file:2: cannot be read as int, got '{30 * '9'}...'"),
    ],
)
def test_an_unreadable_file_is_a_clear_one_line_error(written, content, problem):
    assert problems_of(written(content)) == [problem]


@pytest.mark.parametrize("bomb", ["[{}]", "{{<<: [{}]}}"])
def test_an_alias_bomb_is_a_one_line_error(written, bomb):
    """
    Nine levels of nine aliases: a few lines that mean 400 million values.
    """
    lines = ["x0: &x0 {a: 1, b: 2}\n"]
    for level in range(1, 10):
        aliases = ", ".join([f"*x{level - 1}"] * 9)
        lines.append(f"x{level}: &x{level} {bomb.format(aliases)}\n")
    (problem,) = problems_of(written("".join(lines)))

    assert problem.endswith(MANY)


@settings(max_examples=500)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_data_or_a_spec_error_of_single_lines(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            problems = []
            read_yaml(path)
        except SpecError as error:
            problems = error.problems

    assert not [line for line in problems if "\n" in line or not line.startswith(str(path))]


@pytest.mark.parametrize("content", ["a: 1\n---\nb: 2\n", "a: !!python/name:os.x 1\n"])
def test_other_invalid_yaml_is_a_one_line_error_with_the_file(written, content):
    (problem,) = problems_of(written(content))

    assert problem.startswith("file:")
    assert "\n" not in problem
    assert len(problem) > len("file: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e400", math.inf),
        ("-.inf", -math.inf),
        ("[]", []),
        ("{}", {}),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_extreme_values_are_read_unchanged(written, text, value):
    assert read_yaml(written(f"a: {text}\n")).data == {"a": value}
    assert math.isnan(read_yaml(written("a: .nan\n")).data["a"])


def test_mistakes_are_reported_once_by_line_and_options_last():
    line = Mistake(Place("file", 10), "b")
    mistakes = [Mistake(Place("--set a"), "x"), line, Mistake(Place("file", 9), "c"), line]

    assert spec_error(mistakes).problems == ["file:9: c", "file:10: b", "--set a: x"]


def test_a_missing_file_is_a_one_line_error(tmp_path):
    assert problems_of(tmp_path / "none.yaml") == ["file: no such file or directory"]


def test_a_directory_is_a_one_line_error(tmp_path):
    assert problems_of(tmp_path) == ["file: is a directory"]


def test_a_symbolic_link_to_itself_is_a_one_line_error(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)

    assert problems_of(loop) == ["file: too many levels of symbolic links"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_forbidden_file_is_a_one_line_error(written):
    path = written("a: 1")
    path.chmod(0)

    assert problems_of(path) == ["file: permission denied"]


def test_spec_error_prints_a_line_per_problem():
    assert str(SpecError(["one", "two"])) == "one\ntwo"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("fc", "fc"), ("[1, 2]", [1, 2]), ("true", True), ("", None)],
)
def test_value_of_the_command_line_is_yaml(text, value):
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "problem"), [("[1", "expected"), ("{a: 1, a: 2}", "keep one"), ("\t[", "tab")]
)
def test_broken_value_of_the_command_line_is_a_value_error(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_yaml(text)
