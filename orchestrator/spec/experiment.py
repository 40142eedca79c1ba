"""What an experiment is: runs to train and the paper's tables that they fill."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat, field_validator

from aol.config import TrainConfig
from orchestrator.errors import SpecError
from orchestrator.spec.schema import (
    LARGEST_ID,
    Column,
    Prices,
    Reproduction,
    Row,
    Strict,
    Table,
    parse_ids,
)

REPLICATE_STRIDE = 1000  # replicate k of a run trains with its seed + 1000 k
SMALLEST_SHARE = 0.0001  # of a CPU or GPU that Ray can give
CUSTOM = "custom"  # the profile of runs changed on the command line


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
