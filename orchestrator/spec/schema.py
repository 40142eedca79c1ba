"""The sections of the YAML file as pydantic models."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

Metric = Literal["accuracy", "cra_36", "cra_72", "cra_108", "cra_1"]

RADII: dict[Metric, float] = {  # as in `aol.training.metrics`, which needs torch
    "accuracy": 0.0,
    "cra_36": 36 / 255,
    "cra_72": 72 / 255,
    "cra_108": 108 / 255,
    "cra_1": 1.0,
}

LARGEST_ID = 1_000_000


def parse_ids(value: Any) -> tuple[int, ...]:
    """The numbers of "0, 20-24" or "0..4" (or a list of numbers), in order, each once.

    Raises: ValueError.
    """
    if isinstance(value, list):
        value = ",".join(str(item) for item in value)
    numbers: dict[int, None] = {}
    for part in str(value).replace("..", "-").split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(
                f"{part.strip()!r} is no number or range; write for example 0,20-24"
            ) from None
        if high > LARGEST_ID:
            raise ValueError(f"{high} is larger than {LARGEST_ID}")
        if high < low:
            raise ValueError(f"the range {part.strip()} is empty")
        numbers |= dict.fromkeys(range(low, high + 1))
    return tuple(numbers)


class Strict(BaseModel):
    """A value that refuses fields it does not know and changes of those it has."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(Strict):
    """One column of every table: its printed title and the metric under it."""

    title: str
    metric: Metric

    @property
    def radius(self) -> float:
        """Up to which changes of the image are withstood; 0 for the standard accuracy."""
        return RADII[self.metric]


Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]

Points = Annotated[FiniteFloat, Field(gt=0, le=100)]


class Row(Strict):
    """One printed row: its label, its run, and the paper's values in percent, by column.

    `margins` replaces the table's margin in the columns of these titles.
    """

    label: str
    run: int
    published: list[Percent]
    margins: dict[str, Points] = Field(default_factory=dict)


class Table(Strict):
    """One of the paper's tables; its own margin, if it has one, in percentage points."""

    id: str
    title: str
    header: str = ""
    margin: Points | None = None
    rows: Annotated[list[Row], Field(min_length=1)]


class Prior(Strict):
    """What is known of the spread between seeds before there are any.

    `sd` in percentage points; it counts like `freedom` degrees of freedom.
    """

    sd: Points = 0.2
    freedom: Annotated[FiniteFloat, Field(gt=0)] = 4.0


class Reproduction(Strict):
    """When a cell counts as reproduced; see `orchestrator.analysis.verdicts`."""

    margin: Points = 1.0  # percentage points between the published value and ours
    decimals: Annotated[int, Field(ge=0, le=6)] = 1  # of the published values
    epoch: Literal["last"] = "last"  # which epoch's metrics are compared
    prior: Prior = Prior()

    @property
    def rounding(self) -> float:
        """Half a unit of the last printed decimal, in percentage points."""
        return 0.5 * 10.0**-self.decimals


class Prices(Strict):
    """What training costs, for `missing` and `plan --budget`.

    `tflops` is what training is taken to reach on a GPU until an epoch was timed on one.
    """

    gpu_hour: Annotated[FiniteFloat, Field(ge=0)] = 3.0
    currency: Annotated[str, Field(pattern=r"^\w+$")] = "USD"
    tflops: Annotated[FiniteFloat, Field(gt=0)] = 30.0


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
