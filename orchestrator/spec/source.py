"""A YAML file as plain data that still knows where each value stands."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from orchestrator.errors import SpecError

Keys = tuple[str | int, ...]  # a path through nested mappings and lists

NUMBER = re.compile(r"(?P<factor>\d+)?(?:√(?P<root>\d+))?(?:/(?P<divisor>\d+))?")
MERGE = "tag:yaml.org,2002:merge"
DEEPEST = 50  # levels
TOO_DEEP = f"is nested too deeply; {DEEPEST} levels are allowed"
MOST_VALUES = 100_000  # a few lines of aliases inside aliases can mean billions
LARGEST = 2**63 - 1  # that databases hold


@dataclass(frozen=True)
class Place:
    """Where a value was written: a line of a file, or an option of the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and where."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def spec_error(mistakes: Iterable[Mistake]) -> SpecError:
    """The error that tells each mistake once: the file's by line, then those of options.

    Those of one line, or of options, are in alphabetical order.
    """
    ordered = sorted(set(mistakes), key=lambda one: (one.place.line or math.inf, str(one)))
    return SpecError([str(one) for one in ordered])


@dataclass(frozen=True)
class Document:
    """Plain data and the line of every value in it.

    What an alias or a merge key (`<<`) brings in stands where its anchor is. `mistakes` are those
    that leave the rest readable; what is on `unreadable` lines is not what was written.
    """

    path: Path
    data: Any
    lines: dict[Keys, int]
    mistakes: tuple[Mistake, ...] = ()
    unreadable: frozenset[int] = frozenset()

    def where(self, keys: Keys) -> Place:
        """The place of a value, or of the innermost part of its path that is there."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return Place(str(self.path), self.lines.get(keys, 1))


def read(path: Path) -> Document:
    """The document in a file. Raises: SpecError if it is no YAML mapping."""
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
    walk = _parsed(text, str(path))
    if walk.mistakes and not walk.complete:
        raise spec_error(walk.mistakes)
    if not isinstance(walk.data, dict):
        found = "empty" if walk.data is None else f"a {type(walk.data).__name__}"
        raise SpecError([f"{path}: is {found}, a mapping with `runs:` is needed"])
    mistakes, unreadable = tuple(walk.mistakes), frozenset(walk.unreadable)
    return Document(path, walk.data, walk.lines, mistakes, unreadable)


def read_value(text: str) -> Any:
    """One YAML value from the command line. Raises: ValueError."""
    walk = _parsed(text, "")
    if walk.mistakes:
        raise ValueError(walk.mistakes[0].text)
    return walk.data


def parse_number(value: Any) -> Any:
    """A number written as in the paper ("√2/16", "4√2", "1/64") as a float, else `value`."""
    if not isinstance(value, str):
        return value
    match = NUMBER.fullmatch(value.replace(" ", ""))
    if not match or not (match["factor"] or match["root"]):
        return value
    divisor = float(match["divisor"] or 1)
    if not divisor:
        return value
    return float(match["factor"] or 1) * float(match["root"] or 1) ** 0.5 / divisor


def _parsed(text: str, source: str) -> "_Walk":
    """The walk through a text, with at least one mistake if it is no YAML."""
    walk = _Walk(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML takes the latest
            node = walk.yaml.compose(text)
        walk.data = None if node is None else walk.value(node, ())
        walk.complete = True
    except _EndlessError:
        pass  # noted
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context).split())
        if r"'\t'" in problem:
            problem = "there is a tab; YAML wants spaces"
        walk.note(mark.line + 1 if mark else None, problem)
    except RecursionError:
        walk.note(None, TOO_DEEP)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        walk.note(line, f"the character #x{error.character:04x} is not allowed")
    except LookupError:
        walk.note(None, "%YAML names a version that is not known")
    except OverflowError:
        walk.note(None, r"a character written as \U... does not exist")
    return walk


class _EndlessError(Exception):
    """The walk was given up."""


class _Walk:
    """One pass over a document's nodes: collects data, lines and mistakes."""

    def __init__(self, source: str) -> None:
        self.yaml = YAML(typ="safe", pure=True)
        self.source = source
        self.data: Any = None
        self.lines: dict[Keys, int] = {}
        self.mistakes: list[Mistake] = []
        self.unreadable: set[int] = set()
        self.complete = False
        self._around: list[int] = []  # the nodes we are inside of
        self._values = 0

    def note(self, line: int | None, text: str) -> None:
        """Remember a mistake."""
        self.mistakes.append(Mistake(Place(self.source, line), text))

    def value(self, node: Node, keys: Keys) -> Any:
        """A node's plain value; notes its line."""
        self.lines.setdefault(keys, _line(node))
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        with self._inside(node):
            if isinstance(node, SequenceNode):
                items = enumerate(node.value)
                return [self.value(item, (*keys, index)) for index, item in items]
            data = {}
            for key, (line, inner) in self._pairs(node).items():
                self.lines[*keys, key] = line
                data[key] = self.value(inner, (*keys, key))
            return data

    def _pairs(self, node: Node) -> dict[str, tuple[int, Node]]:
        """A mapping's keys with line and value: its own, and others that `<<` merges in."""
        own: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == MERGE:
                for source in self._merged(value_node, line):
                    with self._inside(source):
                        merged = self._pairs(source) | merged
            elif not isinstance(key_node, ScalarNode):
                self.note(line, "a key must be a word or a number")
            elif (key := str(self._scalar(key_node))) in own:
                self.note(line, f"`{key}` stands here and in line {own[key][0]}; keep one")
            else:
                own[key] = (line, value_node)
        return merged | own

    def _merged(self, node: Node, line: int) -> list[Node]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        if all(isinstance(source, MappingNode) for source in sources):
            return list(sources)
        self.note(line, "`<<` merges mappings: write `<<: *anchor` or `<<: [*one, *two]`")
        return []

    def _scalar(self, node: ScalarNode) -> Any:
        shown = node.value if len(node.value) <= 30 else f"{node.value[:30]}..."
        try:
            value = self.yaml.constructor.construct_object(node)
        except (ValueError, LookupError):  # no such day, more digits than Python reads, !!int x
            value = None
            kind = str(node.tag).rpartition(":")[2]
            self._unreadable(node, f"cannot be read as {kind}, got {shown!r}")
        if isinstance(value, int) and abs(value) > LARGEST:
            self._unreadable(node, f"whole numbers stay below 2**63, got {shown}")
        return value

    def _unreadable(self, node: Node, text: str) -> None:
        self.unreadable.add(_line(node))
        self.note(_line(node), text)

    @contextmanager
    def _inside(self, node: Node) -> Iterator[None]:
        """Goes one level down. Raises: _EndlessError, noted, if that leads nowhere."""
        self._values += len(node.value)
        reason = None
        if id(node) in self._around:
            reason = "an anchor refers to itself"
        elif len(self._around) == DEEPEST:
            reason = TOO_DEEP
        elif self._values > MOST_VALUES:
            reason = f"there are more than {MOST_VALUES} values, those of aliases counted each time"
        if reason:
            self.note(_line(node), reason)
            raise _EndlessError
        self._around.append(id(node))
        yield
        self._around.pop()


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
