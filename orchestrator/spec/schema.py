"""The sections of the YAML file as pydantic models."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from orchestrator.spec.claims import Claim
from orchestrator.spec.fields import (
    RADII,
    Cell,
    FrozenModel,
    Line,
    Measurement,
    Metric,
    Percent,
    Points,
    Prose,
    check_file_name,
    parse_ids,
)

MAX_RUNS = 500
MAX_PROFILES = 20  # every run is validated in every profile
MAX_PARTS = 100  # columns, tables or claims


class Column(FrozenModel):
    """One column of every table: its printed title and its metric."""

    title: Cell
    metric: Metric

    @property
    def radius(self) -> float:
        """The radius up to which a prediction is certified; 0 for the standard accuracy."""
        return RADII[self.metric]


class Row(FrozenModel):
    """One printed row: its label, its run, and the paper's values in percent, by column.

    `margins` replaces the table's margin in the columns of these titles.
    """

    label: Cell
    run: int
    published: list[Percent]
    margins: dict[str, Points] = Field(default_factory=dict)


class Table(FrozenModel):
    """One of the paper's tables, with its own margin if it has one."""

    id: Annotated[str, AfterValidator(check_file_name)]
    title: Line
    header: Cell = ""
    margin: Points | None = None
    rows: Annotated[list[Row], Field(min_length=1)]


class Prior(FrozenModel):
    """The assumed standard deviation between seeds, used as long as few seeds are trained.

    `sd` is in percentage points; it counts like `freedom` degrees of freedom.
    """

    sd: Points = 0.2
    freedom: Annotated[FiniteFloat, Field(gt=0)] = 4.0


class Reproduction(FrozenModel):
    """The rules by which a cell counts as reproduced; see `orchestrator.analysis.verdicts`."""

    margin: Points = 1.0  # between the published value and ours
    decimals: Annotated[int, Field(ge=0, le=6)] = 1  # of the published values
    epoch: Literal["last"] = "last"  # the epoch whose metrics are compared
    prior: Prior = Prior()

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed decimal, in percentage points."""
        return 0.5 * 10.0**-self.decimals


class Prices(FrozenModel):
    """The prices of training, for `missing` and `plan --budget`.

    `tflops` is the assumed speed of training on a GPU until an epoch was timed on one.
    """

    gpu_hour: Annotated[FiniteFloat, Field(ge=0)] = 3.0
    currency: Annotated[str, Field(pattern=r"^\w+$")] = "USD"
    tflops: Annotated[FiniteFloat, Field(gt=0)] = 30.0


class Change(FrozenModel):
    """Settings that a profile changes in some runs, or in all."""

    runs: Annotated[tuple[int, ...] | None, BeforeValidator(parse_ids)] = None
    set: dict[str, Any]


class Profile(FrozenModel):
    """A way to train all runs: the paper's own, or a quick one with a note about that.

    Cells of a profile that is not `comparable` with the paper are not compared with its values.
    """

    note: Prose = ""
    comparable: bool = True
    checkpoint_seconds: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    changes: list[Change] = Field(default_factory=list)


OptionalProfile = Annotated[Profile, BeforeValidator(lambda given: {} if given is None else given)]


class DefaultProfile(FrozenModel):
    """The names of the profiles for clusters with and without a GPU."""

    gpu: str | None = None
    cpu: str | None = None


class File(FrozenModel):
    """The YAML file; its runs are validated once they are merged with the defaults."""

    name: Annotated[Line, Field(min_length=1)]
    source: Prose = ""
    data_root: Path | None = None
    default_profile: DefaultProfile = DefaultProfile()
    defaults: dict[str, Any] = Field(default_factory=dict)
    runs: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_RUNS)]
    profiles: Annotated[dict[str, OptionalProfile], Field(min_length=1, max_length=MAX_PROFILES)]
    columns: Annotated[tuple[Column, ...], Field(max_length=MAX_PARTS)] = ()
    measurements: tuple[Measurement, ...] = ()
    tables: Annotated[tuple[Table, ...], Field(max_length=MAX_PARTS)] = ()
    claims: Annotated[tuple[Claim, ...], Field(max_length=MAX_PARTS)] = ()
    reproduction: Reproduction = Reproduction()
    prices: Prices = Prices()

    @cached_property
    def run_ids(self) -> frozenset[int]:
        """The IDs of the runs that have one."""
        return frozenset(run["id"] for run in self.runs if isinstance(run.get("id"), int))

    @cached_property
    def every_run_has_an_id(self) -> bool:
        """Return whether the ID of every run is a number."""
        return all(isinstance(run.get("id"), int) for run in self.runs)

    def unknown(self, ids: Iterable[int]) -> list[int]:
        """Return those of `ids` that no run has; none while a run has a wrong ID, maybe this."""
        return sorted(set(ids) - self.run_ids) if self.every_run_has_an_id else []

    def run_name(self, index: int) -> str:
        """Return the name of a run in messages: its ID, or else its position in the list."""
        return str(self.runs[index].get("id", f"number {index + 1}"))
