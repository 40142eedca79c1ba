"""The sections of the YAML file as they are written, and what is wrong between them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat

from orchestrator.document import Document, Keys, Mistake
from orchestrator.numbers import number_of
from orchestrator.spec import (
    CUSTOM,
    Column,
    Prices,
    Reproduction,
    Strict,
    Table,
    parse_ids,
    unknown_ids,
)
from orchestrator.validation import nearest, validate

PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]+")
CELL_BREAKS = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what no cell of markdown may have
Names = Mapping[Keys, str]  # by where they stand
FOLDERS = ("ray", "logs")  # of the results, beside those of the profiles


class Change(Strict):
    """Settings that a profile lays over some runs, or over all."""

    runs: Annotated[tuple[int, ...] | None, BeforeValidator(parse_ids)] = None
    set: dict[str, Any]


class Profile(Strict):
    """A way to train all runs: the paper's own, or a quick one marked as such by its note."""

    note: str = ""
    checkpoint_seconds: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    changes: list[Change] = Field(default_factory=list)


MaybeEmpty = Annotated[Profile, BeforeValidator(lambda given: {} if given is None else given)]


class File(Strict):
    """The YAML file as it is written; its runs are checked once they are merged."""

    name: Annotated[str, Field(min_length=1)]
    source: str = ""
    data_root: Path | None = None
    default_profile: dict[str, str] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    runs: Annotated[list[dict[str, Any]], Field(min_length=1)]
    profiles: Annotated[dict[str, MaybeEmpty], Field(min_length=1)]
    columns: list[Column] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)
    reproduction: Reproduction = Reproduction()
    prices: Prices = Prices()

    @property
    def run_ids(self) -> set[int]:
        """The IDs of the runs that have one."""
        return {run["id"] for run in self.runs if isinstance(run.get("id"), int)}

    def unknown(self, ids: Iterable[int]) -> list[int]:
        """Those of `ids` that no run has; none while a run's own ID is wrong and may be meant."""
        meant = all(isinstance(run.get("id"), int) for run in self.runs)
        return sorted(set(ids) - self.run_ids) if meant else []

    def run_name(self, index: int) -> str:
        """What to call a run in a message: its ID, or else its number in the list."""
        return str(self.runs[index].get("id", f"number {index + 1}"))


def read_sections(document: Document) -> tuple[File | None, list[Mistake]]:
    """The file with the parts that are wrong left out, and what is wrong with it.

    Without `runs` or `profiles` there is no file.
    """
    file, found = validate(File, document.data)
    mistakes = [
        Mistake(document.where(keys), f"{'.'.join(map(str, keys))}: {text}") for keys, text in found
    ]
    if file is None:
        wrong = {keys[0] for keys, _ in found}
        rest = {key: value for key, value in document.data.items() if key not in wrong}
        file, _ = validate(File, rest)
    if file:
        for check in CHECKS:
            mistakes += check(document, file)
    return file, mistakes


def _repeated_ids(document: Document, file: File) -> Iterator[Mistake]:
    first: dict[str, int] = {}
    for index in range(len(file.runs)):
        name = file.run_name(index)
        if first.setdefault(name, index) != index:
            earlier = document.where(("runs", first[name]))
            where = document.where(("runs", index, "id"))
            yield Mistake(where, f"run {name}: the ID stands also at {earlier}")


def _bad_tables(document: Document, file: File) -> Iterator[Mistake]:
    for number, table in enumerate(file.tables):
        for index, row in enumerate(table.rows):
            where = document.where(("tables", number, "rows", index))
            if file.unknown([row.run]):
                yield Mistake(where, f"table {table.id}: there is no run {row.run}")
            if file.columns and len(row.published) != len(file.columns):
                yield Mistake(
                    where,
                    f"table {table.id}: run {row.run}: "
                    f"{number_of(len(row.published), 'published value')} for "
                    f"{number_of(len(file.columns), 'column')}",
                )
            titles = [column.title for column in file.columns]
            for title in row.margins:
                if title not in titles:
                    where = document.where(("tables", number, "rows", index, "margins", title))
                    hint = nearest(title, titles)
                    yield Mistake(where, f"table {table.id}: no column {title!r}{hint}")


def _bad_titles(document: Document, file: File) -> Iterator[Mistake]:
    """What is called by a name that another has, or that a table or a file cannot have."""
    columns: Names = {("columns", at, "title"): one.title for at, one in enumerate(file.columns)}
    tables: Names = {("tables", at, "id"): one.id for at, one in enumerate(file.tables)}
    yield from _repeated(document, "column", columns)
    yield from _repeated(document, "table", tables)
    yield from _broken_cells(document, "column", columns)
    for keys, name in tables.items():
        if not PROFILE_NAME.fullmatch(name):
            yield Mistake(
                document.where(keys),
                f"table {name!r} names files of figures: use letters, digits, - and _",
            )
    for at, table in enumerate(file.tables):
        rows: Names = {
            ("tables", at, "rows", n, "label"): row.label for n, row in enumerate(table.rows)
        }
        yield from _repeated(document, f"table {table.id}: row", rows)
        yield from _broken_cells(document, f"table {table.id}: row", rows)
        header: Names = {("tables", at, "header"): table.header}
        yield from _broken_cells(document, f"table {table.id}: header", header)


def _repeated(document: Document, what: str, names: Names) -> Iterator[Mistake]:
    first: dict[str, Keys] = {}
    for keys, name in names.items():
        if first.setdefault(name, keys) != keys:
            earlier = document.where(first[name])
            yield Mistake(document.where(keys), f"{what} {name!r} stands also at {earlier}")


def _broken_cells(document: Document, what: str, names: Names) -> Iterator[Mistake]:
    for keys, name in names.items():
        if CELL_BREAKS.search(name):
            text = f"{what} {name!r} would break the printed table: use no | and no line break"
            yield Mistake(document.where(keys), text)


def _bad_changes(document: Document, file: File) -> Iterator[Mistake]:
    for name, profile in file.profiles.items():
        for order, change in enumerate(profile.changes):
            if unknown := file.unknown(change.runs or ()):
                where = document.where(("profiles", name, "changes", order, "runs"))
                yield Mistake(where, unknown_ids(f"profile {name}", unknown, file.run_ids))


def _bad_defaults(document: Document, file: File) -> Iterator[Mistake]:
    for cluster, name in file.default_profile.items():
        where = document.where(("default_profile", cluster))
        if cluster not in ("gpu", "cpu"):
            yield Mistake(where, f"default_profile: got {cluster!r}, allowed: gpu, cpu")
        if name not in file.profiles:
            hint = nearest(name, list(file.profiles))
            yield Mistake(where, f"default_profile: unknown profile {name!r}{hint}")
    if "id" in file.defaults:
        where = document.where(("defaults", "id"))
        yield Mistake(where, "defaults.id: every run has an ID of its own")


def _bad_names(document: Document, file: File) -> Iterator[Mistake]:
    for name in file.profiles:
        where = document.where(("profiles", name))
        if name == CUSTOM:
            yield Mistake(where, f"the profile name {CUSTOM!r} is taken for --set; use another")
        elif not PROFILE_NAME.fullmatch(name) or name in FOLDERS:
            yield Mistake(
                where,
                f"profile {name!r} names a folder of the results: use letters, digits, "
                f"- and _, not {' or '.join(FOLDERS)}",
            )


CHECKS = (_repeated_ids, _bad_tables, _bad_titles, _bad_changes, _bad_defaults, _bad_names)
