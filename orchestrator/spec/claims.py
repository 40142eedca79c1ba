"""The claims of a paper in a small vocabulary over runs and columns."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from aol.certification.certificate import parse_radius
from aol.errors import RadiusError
from orchestrator.spec.fields import MEASUREMENTS, FrozenModel, Prose, check_file_name, parse_ids
from orchestrator.spec.validation import suggest

INNER_PATH = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
CRA = "CRA "  # followed by a radius: certified robust accuracy at any radius


def radius_of(column: str) -> float | None:
    """Return the radius of a column such as `CRA 1/4`, None if the text is none."""
    if not column.startswith(CRA):
        return None
    try:
        return parse_radius(column.removeprefix(CRA))
    except RadiusError:
        return None


RunIds = Annotated[tuple[int, ...], BeforeValidator(parse_ids)]


def find_repeated(values: Sequence[Any]) -> Any:
    """Return the first value that occurs again, None if none does."""
    return next((value for index, value in enumerate(values) if value in values[:index]), None)


def _check_claim_id(text: str) -> str:
    if text[:1].isdigit():
        raise ValueError(f"must not begin with a digit, as run IDs do; got {text!r}")
    return check_file_name(text)


def _check_inner_path(text: str) -> str:
    if not INNER_PATH.fullmatch(text):
        raise ValueError(
            "must be a path below the folder of the YAML file, of letters, digits, `_`, `.` and "
            f"`-`, such as benchmarks/results/costs.json; got {text!r}"
        )
    return text


class Trend(FrozenModel):
    """A column that increases or decreases along runs, or its difference to `minus` does."""

    runs: Annotated[RunIds, Field(min_length=3)]
    column: str
    minus: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the claim is about."""
        return (self.column,) if self.minus is None else (self.column, self.minus)


class Extreme(FrozenModel):
    """A run that is the highest or the lowest of several in a column."""

    run: int
    runs: Annotated[RunIds, Field(min_length=2)]
    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the claim is about."""
        return (self.column,)


class Above(FrozenModel):
    """Orders of runs, highest first, in some columns or in all."""

    orders: Annotated[list[Annotated[list[int], Field(min_length=2)]], Field(min_length=1)]
    columns: Literal["all"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all"

    @property
    def runs(self) -> tuple[int, ...]:
        """The runs that the claim is about."""
        return tuple(dict.fromkeys(run for order in self.orders for run in order))


class Moves(FrozenModel):
    """The best run of several, or the few that may be the best, for each column."""

    runs: Annotated[RunIds, Field(min_length=2)]
    best: Annotated[dict[str, RunIds], Field(min_length=1)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the claim is about."""
        return tuple(self.best)


class Bound(FrozenModel):
    """A value that a column does not exceed, or does not fall below, in some runs or in all."""

    runs: RunIds | Literal["all"] = "all"
    column: str
    value: FiniteFloat

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the claim is about."""
        return (self.column,)


class Cheaper(FrozenModel):
    """A method that costs less than each of several others, by the file of a benchmark.

    `costs` is its path, relative to the folder of the YAML file.
    """

    method: str
    than: Annotated[tuple[str, ...], Field(min_length=1)]
    costs: Annotated[str, AfterValidator(_check_inner_path)]

    @property
    def runs(self) -> tuple[int, ...]:
        """The runs that the claim is about: none."""
        return ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the claim is about: none."""
        return ()


Relation = Trend | Extreme | Above | Moves | Bound | Cheaper


class Claim(FrozenModel):
    """A sentence of the paper, its place there, and exactly one relation that states it."""

    id: Annotated[str, AfterValidator(_check_claim_id)]
    text: Annotated[Prose, Field(min_length=1)]
    source: Prose = ""
    increases: Trend | None = None
    decreases: Trend | None = None
    highest: Extreme | None = None
    lowest: Extreme | None = None
    above: Above | None = None
    moves: Moves | None = None
    at_most: Bound | None = None
    at_least: Bound | None = None
    cheaper: Cheaper | None = None

    @property
    def relations(self) -> dict[str, Relation]:
        """The relations given, by name: one, in a valid file."""
        relations = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: relation for kind, relation in relations.items() if relation is not None}

    @property
    def kind(self) -> str:
        """The name of its relation."""
        (kind,) = self.relations
        return kind

    @property
    def relation(self) -> Relation:
        """Its relation."""
        (relation,) = self.relations.values()
        return relation

    def runs_among(self, ids: Iterable[int]) -> tuple[int, ...]:
        """Return the IDs of the runs that the claim is about, given those of the file."""
        runs = self.relation.runs
        return tuple(ids) if isinstance(runs, str) else runs

    def columns_among(self, titles: Iterable[str]) -> tuple[str, ...]:
        """Return the columns that the claim is about, given the titles of the file's."""
        columns = self.relation.columns
        return tuple(titles) if isinstance(columns, str) else columns


KINDS = tuple(name for name in Claim.model_fields if name not in ("id", "text", "source"))


def claim_mistakes(claim: Claim, titles: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the wrong fields of a claim with one relation, and what is wrong with them.

    `titles` are those of the file's columns.
    """
    known = {*titles, *MEASUREMENTS}
    for column in claim.columns_among(titles):
        if column not in known and radius_of(column) is None:
            hint = suggest(column, [*titles, *MEASUREMENTS, "CRA RADIUS"])
            yield "column", f"no column {column!r}{hint}"
    match claim.relation:
        case Above() as above:
            yield from _above_mistakes(above)
        case Trend(column=column, minus=minus) if column == minus:
            yield "minus", f"is {column!r} like `column`, which claims nothing"
        case Extreme(run=run, runs=runs) if run not in runs:
            yield "run", f"run {run} is not among its `runs`"
        case Moves() as moves:
            yield from _moves_mistakes(moves)


def _above_mistakes(above: Above) -> Iterator[tuple[str, str]]:
    for order in above.orders:
        if (repeated := find_repeated(order)) is not None:
            yield "orders", f"run {repeated} occurs twice in an order"
    if above.columns != "all" and (repeated := find_repeated(above.columns)) is not None:
        yield "columns", f"column {repeated!r} occurs twice"


def _moves_mistakes(moves: Moves) -> Iterator[tuple[str, str]]:
    for column, chosen in moves.best.items():
        if wrong := sorted(set(chosen) - set(moves.runs)):
            yield "best", f"{column}: run {wrong[0]} is not among its `runs`"
        elif set(chosen) == set(moves.runs):
            yield "best", f"{column}: names every run, which claims nothing"
