"""What an experiment is: runs to train and the paper's tables that they fill."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator

from aol.config import TrainConfig
from orchestrator.document import SpecError

Metric = Literal["accuracy", "cra_36", "cra_72", "cra_108", "cra_1"]
RADII: dict[Metric, float] = {  # as in `aol.metrics`, which needs torch
    "accuracy": 0.0,
    "cra_36": 36 / 255,
    "cra_72": 72 / 255,
    "cra_108": 108 / 255,
    "cra_1": 1.0,
}
LARGEST_ID = 1_000_000
REPLICATE_STRIDE = 1000  # replicate k of a run trains with its seed + 1000 k
SMALLEST_SHARE = 0.0001  # of a CPU or GPU that Ray can give
CUSTOM = "custom"  # the profile of runs changed on the command line


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


class Resources(Strict):
    """What one run occupies; None leaves it to the cluster (a GPU if there is one)."""

    cpus: Annotated[FiniteFloat, Field(ge=SMALLEST_SHARE)] | None = None
    gpus: Annotated[FiniteFloat, Field(ge=0)] | None = None

    @field_validator("gpus")
    @classmethod
    def _one_at_most(cls, gpus: float | None) -> float | None:
        if gpus is not None and (gpus > 1 or 0 < gpus < SMALLEST_SHARE):
            raise ValueError(
                "a run trains on one GPU at most; allowed: 0, 1, or a share of one from "
                f"{SMALLEST_SHARE}"
            )
        return gpus


class RunSpec(Strict):
    """One row of the paper: a stable ID, a printed name and what to train."""

    id: Annotated[int, Field(ge=0, le=LARGEST_ID, strict=True)]
    name: Annotated[str, Field(min_length=1)]
    resources: Resources = Resources()
    train: TrainConfig
    profile: str = ""

    @property
    def key(self) -> str:
        """The name of this run's results, `22-s22-3372f973`: ID, seed, digest of `train`.

        Another name, other GPUs or a moved file keep it; whatever can change a number of the
        result does not. The ID is part of it because runs 0 and 22 of the paper share their
        settings and must not share a checkpoint.
        """
        return f"{self.id}-s{self.train.seed}-{self.train.digest()}"

    def replicate_seed(self, number: int) -> int:
        """The seed of the run's replicate of this number; 0 is the run itself."""
        return self.train.seed + REPLICATE_STRIDE * number

    def replicate_number(self, seed: int) -> int:
        """Which of its replicates has this seed."""
        return (seed - self.train.seed) // REPLICATE_STRIDE

    def is_replicate(self, seed: int) -> bool:
        """Whether `seed` is this run's own or that of one of its replicates."""
        return seed >= self.train.seed and (seed - self.train.seed) % REPLICATE_STRIDE == 0


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
    """When a cell counts as reproduced; see `orchestrator.verdicts`."""

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


@dataclass(frozen=True)
class Experiment:
    """One profile of a YAML file: its runs and the tables they fill.

    With overrides that can change a number, the profile is "custom" and `base` the file's own.
    """

    path: Path
    name: str
    source: str
    profile: str
    note: str
    checkpoint_seconds: float
    data_root: Path | None
    runs: tuple[RunSpec, ...]
    columns: tuple[Column, ...]
    tables: tuple[Table, ...]
    reproduction: Reproduction = field(default_factory=Reproduction)
    prices: Prices = field(default_factory=Prices)
    base: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """Those of the command line that make it of the file."""
        changes = (part for text in self.overrides for part in ("--set", text))
        return ("--profile", self.base, *changes)

    def margin(self, table: Table, row: Row, column: Column) -> float:
        """Within which a cell counts as reproduced, in percentage points."""
        otherwise = self.reproduction.margin if table.margin is None else table.margin
        return row.margins.get(column.title, otherwise)

    def table(self, name: str) -> Table:
        """The table of this ID or title. Raises: SpecError."""
        for table in self.tables:
            if name.casefold() in (table.id.casefold(), table.title.casefold()):
                return table
        known = ", ".join(table.id for table in self.tables)
        raise SpecError([f"--table {name}: there is no such table; the tables are {known}"])

    def select(self, ids: Iterable[int], option: str = "--only") -> "Experiment":
        """The same experiment with these runs only. Raises: SpecError for an unknown ID."""
        wanted = set(ids)
        known = {run.id for run in self.runs}
        if unknown := sorted(wanted - known):
            raise SpecError([unknown_ids(option, unknown, known)])
        return replace(self, runs=tuple(run for run in self.runs if run.id in wanted))

    def chosen(self, only: str | None, seeds: str | None) -> "Experiment":
        """The runs and replicates named on the command line. Raises: SpecError."""
        experiment = self
        if only is not None:
            experiment = experiment.select(ids_of("--only", only))
        if seeds is not None:
            experiment = experiment.replicates(ids_of("--seeds", seeds))
        return experiment

    def replicates(self, numbers: Iterable[int]) -> "Experiment":
        """Every run once per number k, trained with its seed + 1000 k; 0 is the file's own."""
        runs = tuple(
            run.model_copy(update={"train": replace(run.train, seed=run.replicate_seed(k))})
            for k in numbers
            for run in self.runs
        )
        return replace(self, runs=runs)


def noted(note: str, text: str) -> str:
    """A text for people under its profile's note: its numbers are not to be taken for others."""
    return f"{note}\n\n{text}" if note else text


def unknown_ids(where: str, unknown: Iterable[int], known: Iterable[int]) -> str:
    """One line about run IDs that do not exist."""
    named = ", ".join(map(str, unknown))
    return f"{where}: there is no run {named}; the runs are {', '.join(map(str, sorted(known)))}"


def ids_of(option: str, text: str) -> tuple[int, ...]:
    """The numbers given to an option of the command line. Raises: SpecError."""
    try:
        return parse_ids(text)
    except ValueError as error:
        raise SpecError([f"{option} {text}: {error}"]) from None
