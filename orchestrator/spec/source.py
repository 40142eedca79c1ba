"""Reading YAML as plain data, with the line of every value and every mistake."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from aol.reading import read_limited
from aol.text import joined_lines
from orchestrator.errors import SpecError

Loc = tuple[str | int, ...]  # a path through nested mappings and lists, as in pydantic's errors

MERGE = "tag:yaml.org,2002:merge"
MAX_BYTES = 2**20
MAX_DEPTH = 50
TOO_DEEP = f"is nested too deeply; {MAX_DEPTH} levels are allowed"
MAX_VALUES = 10_000  # a few lines of aliases of aliases can stand for billions
TOO_MANY = f"there are more than {MAX_VALUES} values; each alias counts as a copy"
MAX_MISTAKES = 100  # that are printed
MAX_LINE = 2_000  # characters of a mistake
MAX_INT = 2**63 - 1  # the largest in a database
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Place:
    """The place of a value: a line of a file, or an option of the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Mistake:
    """A message and the place of the wrong value."""

    place: Place
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def spec_error(mistakes: Iterable[Mistake]) -> SpecError:
    """Return the error with each mistake once: the file's by line, then those of options."""
    ordered = sorted(set(mistakes), key=lambda one: (one.place.line or math.inf, str(one)))
    lines = [shorten(str(one), MAX_LINE) for one in ordered[:MAX_MISTAKES]]
    if len(ordered) > MAX_MISTAKES:
        lines.append(f"and {len(ordered) - MAX_MISTAKES} more mistakes")
    return SpecError(lines)


def shorten(text: str, length: int) -> str:
    """Return a text of at most `length` characters, cut off if it is longer."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def read_yaml(path: Path) -> "Document":
    """Return the document in a file. Raises: SpecError if it is not a YAML mapping."""
    try:
        document = Document(read_limited(path, MAX_BYTES).decode("utf-8"), str(path))
    except OSError as error:
        raise SpecError([f"{path}: {(error.strerror or str(error)).lower()}"]) from error
    except UnicodeDecodeError as error:
        raise SpecError([f"{path}: byte {error.start} is not UTF-8; save it as UTF-8"]) from error
    except ValueError as error:
        raise SpecError([f"{path}: {str(error).removeprefix(f'{path.name} ')}"]) from error
    if not document.complete:
        raise spec_error(document.mistakes)
    if not isinstance(document.data, dict):
        found = "empty" if document.data is None else f"a {type(document.data).__name__}"
        raise SpecError([f"{path}: is {found}, a mapping with `runs:` is needed"])
    return document


def parse_yaml(text: str) -> Any:
    """Return a YAML value of the command line. Raises: ValueError."""
    document = Document(text, "")
    if document.mistakes:
        raise ValueError(document.mistakes[0].text)
    return document.data


class LimitedComposer(Composer):
    """Stops at the first value beyond a limit of depth or number, before the rest is read."""

    def __init__(self, loader: Any = None) -> None:
        super().__init__(loader=loader)
        self._parents = 0  # of the node that is being read
        self._nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node. Raises: MarkedYAMLError beyond the limits."""
        self._nodes += 1
        problem = TOO_DEEP if self._parents > MAX_DEPTH else None
        if self._nodes > 2 * MAX_VALUES:  # a mapping's keys are nodes, too
            problem = TOO_MANY
        if problem:
            mark = self.parser.peek_event().start_mark
            raise MarkedYAMLError(problem=problem, problem_mark=mark)
        self._parents += 1
        node = super().compose_node(parent, index)
        self._parents -= 1
        return node


class Document:
    """YAML text as plain data, with the line of every value and every mistake.

    The line of what an alias or a merge key (`<<`) brings in is that of its anchor. Unless
    `complete`, reading stopped at the last mistake. Values on `unreadable` lines are None.
    """

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.data: Any = None
        self.lines: dict[Loc, int] = {}
        self.mistakes: list[Mistake] = []
        self.unreadable: set[int] = set()
        self.complete = False
        self._yaml = YAML(typ="safe", pure=True)
        self._yaml.Composer = LimitedComposer
        self._parents: list[Node] = []  # of the node that is being read
        self._values = 0
        self._read(text)

    def where(self, loc: Loc) -> Place:
        """Return the place of a value, or of the innermost part of its path that exists."""
        while loc and loc not in self.lines:
            loc = loc[:-1]
        return Place(self.source, self.lines.get(loc, 1))

    def _read(self, text: str) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", ReusedAnchorWarning
                )  # the latest counts, as in YAML
                node = self._yaml.compose(text)
            self.data = None if node is None else self._value(node, ())
            self.complete = True
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = joined_lines(str(error.problem or error.context))
            if r"'\t'" in problem:
                problem = "there is a tab; indent with spaces"
            self._note(mark.line + 1 if mark else None, problem)
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            self._note(line, f"the character #x{error.character:04x} is not allowed")
        except LookupError:
            self._note(None, "%YAML names an unknown version")
        except (OverflowError, ValueError):
            self._note(None, r"a character written as \U... or the version of %YAML does not exist")

    def _note(self, line: int | None, text: str) -> None:
        self.mistakes.append(Mistake(Place(self.source, line), text))

    def _value(self, node: Node, loc: Loc) -> Any:
        """Return a node's plain value and keep its lines."""
        self.lines.setdefault(loc, _line(node))
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        with self._nested(node):
            if isinstance(node, SequenceNode):
                return [self._value(item, (*loc, index)) for index, item in enumerate(node.value)]
            data = {}
            for key, (line, inner) in self._pairs(node).items():
                self.lines[*loc, key] = line
                data[key] = self._value(inner, (*loc, key))
            return data

    def _pairs(self, node: Node) -> dict[str, tuple[int, Node]]:
        """Return line and value of a mapping's keys: its own, then those that `<<` merges in."""
        own: dict[str, tuple[int, Node]] = {}
        merged: dict[str, tuple[int, Node]] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == MERGE:
                for source in self._merged(value_node, line):
                    with self._nested(source):
                        merged = self._pairs(source) | merged
            elif not isinstance(key_node, ScalarNode):
                self._note(line, "a key must be a word or a number")
            elif (key := str(self._scalar(key_node))) in own:
                self._note(line, f"`{key}` is given here and in line {own[key][0]}; keep one")
            else:
                own[key] = (line, value_node)
        return merged | own

    def _merged(self, node: Node, line: int) -> list[Node]:
        sources = node.value if isinstance(node, SequenceNode) else [node]
        if all(isinstance(source, MappingNode) for source in sources):
            return list(sources)
        self._note(line, "`<<` merges mappings: write `<<: *anchor` or `<<: [*one, *two]`")
        return []

    def _scalar(self, node: ScalarNode) -> Any:
        problem = None
        shown = shorten(node.value, 33)
        try:
            value = self._yaml.constructor.construct_object(node)
            if isinstance(value, int) and abs(value) > MAX_INT:
                problem = f"whole numbers must be below 2**63, got {shown}"
            elif isinstance(value, str) and SURROGATE.search(value):
                problem = f"half of a surrogate pair is not a character, got {shown!a}"
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            # no such day, more digits than Python reads, !!int x
            problem = f"cannot be read as {str(node.tag).rpartition(':')[2]}, got {shown!a}"
        if problem is None:
            return value
        self.unreadable.add(_line(node))
        self._note(_line(node), problem)
        return None

    @contextmanager
    def _nested(self, node: Node) -> Iterator[None]:
        """Go one level down. Raises: MarkedYAMLError if that has no end."""
        self._values += len(node.value)
        problem = None
        if any(node is parent for parent in self._parents):
            problem = "an anchor refers to itself"
        elif len(self._parents) == MAX_DEPTH:
            problem = TOO_DEEP
        elif self._values > MAX_VALUES:
            problem = TOO_MANY
        if problem:
            raise MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        self._parents.append(node)
        yield
        self._parents.pop()


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1
