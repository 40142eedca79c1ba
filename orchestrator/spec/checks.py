"""The sections of the YAML file as they are written, and what is wrong between them."""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from aol.config import TrainConfig
from aol.models.widths import Field, Model, misfit, neighbours
from orchestrator.formatting import pluralize
from orchestrator.spec.experiment import CUSTOM, unknown_ids
from orchestrator.spec.overrides import Layers, option
from orchestrator.spec.schema import File
from orchestrator.spec.source import Document, Keys, Mistake, Place
from orchestrator.spec.validation import suggest, validate

PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]+")
CELL_BREAKS = re.compile(r"[|\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what no cell of markdown may have
Names = Mapping[Keys, str]  # by where they stand
FOLDERS = ("ray", "logs")  # of the results, beside those of the profiles


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
                    f"{pluralize(len(row.published), 'published value')} for "
                    f"{pluralize(len(file.columns), 'column')}",
                )
            titles = [column.title for column in file.columns]
            for title in row.margins:
                if title not in titles:
                    where = document.where(("tables", number, "rows", index, "margins", title))
                    hint = suggest(title, titles)
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
            hint = suggest(name, list(file.profiles))
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


DECIDING = ("model.width", "model.size", "model.kind", "data.name")  # whether a network fits

RunMistake = tuple[str, Mistake]  # what to call the run, and what is wrong with it


@dataclass(frozen=True)
class Fitted:
    """A run whose model and data are right, each by itself."""

    name: str
    train: TrainConfig
    layers: Layers

    @property
    def model(self) -> Model:
        """The network's settings and its classes."""
        return self.train.model, self.train.data.classes


def misfits(runs: Sequence[Fitted], overrides: Container[str]) -> list[RunMistake]:
    """What is wrong with the networks of a profile's runs.

    Names the nearest values that fit, for all runs that take the value from the same place.
    """
    mistakes = []
    near: dict[tuple[Place, float, Field], list[Fraction]] = {}
    for run in runs:
        reason = misfit(*run.model)
        if reason is None:
            continue
        for field in _suspects(run):
            shared = _shared(run, field)
            if shared not in near:
                sharing = dict.fromkeys(one.model for one in runs if _shared(one, field) == shared)
                near[shared] = neighbours(sharing, field)
            if near[shared]:
                break
        place, value, _ = shared
        advice = " and ".join(map(written, near[shared]))
        text = f"model.{field}: got {value}: {reason}"
        text += f"; nearest that fit: {advice}" if advice else ""
        mistakes.append((run.name, Mistake(_blamed(field, overrides) or place, text)))
    return mistakes


def written(value: Fraction) -> str:
    """The number as one would write it in the file: `0.125`, `13/96`."""
    decimal = f"{float(value):.6g}"
    return decimal if Fraction(decimal) == value else str(value)


def _suspects(run: Fitted) -> list[Field]:
    """The two fields that can be changed, the one that was set last first."""
    latest = run.layers.latest(("model", "width"), ("model", "size"))
    return ["width", "size"] if latest == ("model", "width") else ["size", "width"]


def _shared(run: Fitted, field: Field) -> tuple[Place, float, Field]:
    """Where a run has its value from: runs with the same answer change together."""
    return run.layers.origin(("model", field)), getattr(run.train.model, field), field


def _blamed(field: Field, overrides: Container[str]) -> Place | None:
    """The override that made the widths wrong, if there is one: the file alone is right."""
    names = (f"model.{field}", *DECIDING)
    return next((option(name) for name in names if name in overrides), None)
