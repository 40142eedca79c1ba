import math
import os

import pytest

from orchestrator.document import Document, SpecError, number, read, read_value


def problems_of(path):
    with pytest.raises(SpecError) as caught:
        read(path)
    return [line.replace(str(path), "file") for line in caught.value.problems]


@pytest.fixture
def written(tmp_path):
    """
    Writes text or bytes to a YAML file and returns its path.
    """

    def write(content):
        path = tmp_path / "runs.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_data_is_plain_python(written):
    document = read(written("a: {b: [1, 2.5, yes, true, 1e-3, text]}\nc:\n"))

    assert document.data == {"a": {"b": [1, 2.5, "yes", True, 1e-3, "text"]}, "c": None}
    assert type(document.data["a"]["b"]) is list


def test_every_nested_value_knows_its_line(written):
    path = written("# a comment\nname: x\nruns:\n  - {id: 0, model: {kind: fc}}\n  - id: 1\n")
    document = read(path)

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
    document = read(written("a: {\n  b: 1,\n  c:\n    2\n}\n"))

    assert document.where(("a", "c")).endswith(":3")


def test_what_is_missing_is_placed_at_the_innermost_part_that_is_there(written):
    path = written("name: x\nruns:\n  - id: 0\n    model:\n      kind: fc\n")
    document = read(path)

    assert document.where(("runs", 0, "model", "size")) == f"{path}:4"
    assert document.where(("runs", 7)) == f"{path}:2"
    assert document.where(("nowhere",)) == f"{path}:1"
    assert Document(path, {}, {}).where(("a",)) == f"{path}:1"


def test_an_alias_is_the_same_data(written):
    document = read(written("a: &x {b: 1}\nc: *x\n"))

    assert document.data == {"a": {"b": 1}, "c": {"b": 1}}


def test_all_repeated_keys_are_reported_at_once_with_both_lines(written):
    path = written("a: 1\nb: {c: 1,\n  c: 2}\na: 3\nd:\n  - {e: 1, e: 1}\n")

    assert problems_of(path) == [
        "file:3: `c` stands here and in line 2; keep one",
        "file:4: `a` stands here and in line 1; keep one",
        "file:6: `e` stands here and in line 6; keep one",
    ]


def test_a_key_that_is_a_list_is_refused_and_the_rest_still_read(written):
    path = written("? [a, b]\n: 1\nc: 1\nc: 2\n")

    assert problems_of(path) == [
        "file:1: a key must be a word or a number",
        "file:4: `c` stands here and in line 3; keep one",
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
        ("a:\n\t- 1\n", "file:2: found character '\\t' that cannot start any token"),
    ],
)
def test_what_is_no_yaml_mapping_is_one_clear_line(written, content, problem):
    assert problems_of(written(content)) == [problem]


@pytest.mark.parametrize(
    "content", ["a: \x07\n", "a: 2020-13-45\n", "a: 1\n---\nb: 2\n", "a: !!python/name:os.x 1\n"]
)
def test_other_broken_yaml_is_one_line_that_names_the_file(written, content):
    (problem,) = problems_of(written(content))

    assert problem.startswith("file:")
    assert "\n" not in problem
    assert len(problem) > len("file: ")


def test_missing_file_is_one_line(tmp_path):
    assert problems_of(tmp_path / "none.yaml") == ["file: no such file"]


def test_directory_is_one_line(tmp_path):
    assert problems_of(tmp_path) == ["file: is a directory, a YAML file is needed"]


def test_symbolic_link_to_itself_is_one_line(tmp_path):
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)

    assert problems_of(loop) == ["file: cannot be read: Too many levels of symbolic links"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_forbidden_file_is_one_line(written):
    path = written("a: 1")
    path.chmod(0)

    assert problems_of(path) == ["file: cannot be read: Permission denied"]


def test_spec_error_prints_a_line_per_problem():
    assert str(SpecError(["one", "two"])) == "one\ntwo"


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("1e-3", 1e-3), ("fc", "fc"), ("[1, 2]", [1, 2]), ("true", True), ("", None)],
)
def test_value_of_the_command_line_is_yaml(text, value):
    assert read_value(text) == value


def test_broken_value_of_the_command_line_is_a_value_error():
    with pytest.raises(ValueError, match="expected"):
        read_value("[1")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("√2", math.sqrt(2)),
        ("√2/16", math.sqrt(2) / 16),
        ("√2/4", math.sqrt(2) / 4),
        ("4√2", 4 * math.sqrt(2)),
        ("16√2", 16 * math.sqrt(2)),
        ("3√2/4", 3 * math.sqrt(2) / 4),
        (" 4 √2 ", 4 * math.sqrt(2)),
        ("√12", math.sqrt(12)),
        ("1/64", 1 / 64),
        ("1/4", 1 / 4),
        ("12", 12.0),
    ],
)
def test_numbers_are_written_as_in_the_paper(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/",
        "/4",
        "√",
        "1/0",
        "√2/0",
        "2√",
        "√2/√2",
        "-1/4",
        "1.5/2",
        "1e-3",
        "fc",
        3,
        True,
        None,
    ],
)
def test_what_is_no_such_number_is_left_alone(value):
    assert number(value) is value
