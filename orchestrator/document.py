"""A YAML file as plain data that still knows where each value stands."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

Keys = tuple[str | int, ...]  # a path through nested mappings and lists

NUMBER = re.compile(r"(?P<factor>\d+)?(?:√(?P<root>\d+))?(?:/(?P<divisor>\d+))?")


class SpecError(Exception):
    """All that is wrong with the user's input, one line per mistake."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Document:
    """Plain data and the line of every value in it."""

    path: Path
    data: Any
    lines: dict[Keys, int]

    def where(self, keys: Keys) -> str:
        """`file:line` of a value, or of the innermost part of its path that is there."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines.get(keys, 1)}"


def read(path: Path) -> Document:
    """The document in a file. Raises: SpecError for whatever is no YAML mapping."""
    if path.is_dir():
        raise SpecError([f"{path}: is a directory, a YAML file is needed"])
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise SpecError([f"{path}: no such file"]) from None
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SpecError([f"{path}: byte {error.start} is not UTF-8; save it as UTF-8"]) from error
    document, problems = _parse(text, path)
    if problems:
        raise SpecError(problems)
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else f"a {type(document.data).__name__}"
        raise SpecError([f"{path}: is {found}, a mapping with `runs:` is needed"])
    return document


def read_value(text: str) -> Any:
    """One YAML value from the command line. Raises: ValueError."""
    try:
        return _parse(text, Path("--set"))[0].data
    except SpecError as error:
        raise ValueError(str(error)) from None


def number(value: Any) -> Any:
    """A number written as in the paper ("√2/16", "4√2", "1/64") as a float, else `value`."""
    if not isinstance(value, str):
        return value
    match = NUMBER.fullmatch(value.replace(" ", ""))
    if not match or not any(match.groups()) or match["divisor"] == "0":
        return value
    if not match["factor"] and not match["root"]:
        return value
    root = float(match["root"] or 1) ** 0.5
    return float(match["factor"] or 1) * root / float(match["divisor"] or 1)


def _parse(text: str, path: Path) -> tuple[Document, list[str]]:
    yaml = YAML(typ="safe", pure=True)
    lines: dict[Keys, int] = {}
    problems: list[str] = []
    try:
        node = yaml.compose(text)
        data = None if node is None else _plain(yaml, node, (), lines, problems)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError([f"{path}{line}: {error.problem or error.context}"]) from error
    except RecursionError:
        raise SpecError([f"{path}: an anchor refers to itself"]) from None
    except (YAMLError, ValueError) as error:
        raise SpecError([f"{path}: {str(error).splitlines()[0]}"]) from error
    return Document(path, data, lines), [f"{path}:{problem}" for problem in problems]


def _plain(yaml: YAML, node: Node, keys: Keys, lines: dict[Keys, int], problems: list[str]) -> Any:
    """A node's value; notes its line, and problems that a plain value cannot show."""
    lines.setdefault(keys, node.start_mark.line + 1)
    if isinstance(node, SequenceNode):
        return [
            _plain(yaml, item, (*keys, index), lines, problems)
            for index, item in enumerate(node.value)
        ]
    if not isinstance(node, MappingNode):
        return yaml.constructor.construct_object(node)
    data: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            problems.append(f"{line}: a key must be a word or a number")
            continue
        key = str(yaml.constructor.construct_object(key_node))
        inner = (*keys, key)
        if key in data:
            problems.append(f"{line}: `{key}` stands here and in line {lines[inner]}; keep one")
            continue
        lines[inner] = line
        data[key] = _plain(yaml, value_node, inner, lines, problems)
    return data
