"""An experiment: runs to train and the paper's tables that they fill."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat, field_validator

from aol.config import TrainConfig
from orchestrator.errors import SpecError
from orchestrator.spec.claims import Claim
from orchestrator.spec.fields import MAX_ID, FrozenModel, Line, Measurement, parse_ids
from orchestrator.spec.schema import Column, Prices, Reproduction, Row, Table

REPLICATE_STRIDE = 1000  # replicate k of a run trains with its seed + 1000 k
MIN_SHARE = 0.0001  # of a CPU or GPU in Ray
CUSTOM = "custom"  # the profile of runs changed on the command line


class Resources(FrozenModel):
    """The CPUs and GPUs of one run; None leaves them to the cluster (a GPU if there is one)."""

    cpus: Annotated[FiniteFloat, Field(ge=MIN_SHARE)] | None = None
    gpus: Annotated[FiniteFloat, Field(ge=0)] | None = None

    @field_validator("gpus")
    @classmethod
    def _check_gpus(cls, gpus: float | None) -> float | None:
        if gpus is not None and (gpus > 1 or 0 < gpus < MIN_SHARE):
            raise ValueError(
                "a run trains on one GPU at most; allowed: 0, 1, or a share of one from "
                f"{MIN_SHARE}"
            )
        return gpus


class RunSpec(FrozenModel):
    """One row of the paper: a stable ID, a printed name and the settings of its training."""

    id: Annotated[int, Field(ge=0, le=MAX_ID, strict=True)]
    name: Annotated[Line, Field(min_length=1)]
    resources: Resources = Resources()
    train: TrainConfig
    profile: Line = ""

    @property
    def key(self) -> str:
        """The name of this run's results, `22-s22-3372f973`: ID, seed, digest of `train`.

        Another name, other GPUs or a moved file keep it; whatever can change a number of the
        result does not. The ID is part of it because runs 0 and 22 of the paper share their
        settings and must not share a checkpoint.
        """
        return f"{self.id}-s{self.train.seed}-{self.train.digest()}"

    def replicate_seed(self, number: int) -> int:
        """Return the seed of the run's replicate of this number; 0 is the run itself."""
        return self.train.seed + REPLICATE_STRIDE * number

    def replicate_number(self, seed: int) -> int:
        """Return the number of the replicate with this seed."""
        return (seed - self.train.seed) // REPLICATE_STRIDE

    def is_replicate(self, seed: int) -> bool:
        """Return whether `seed` is this run's own or that of one of its replicates."""
        return seed >= self.train.seed and (seed - self.train.seed) % REPLICATE_STRIDE == 0


@dataclass(frozen=True)
class Experiment:
    """One profile of a YAML file: its runs and the tables they fill.

    With overrides that can change a number, `profile` is "custom" and `base` the file's own. If
    `runs` are a selection or replicates, `all_runs` are all runs with the seeds of the file.
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
    claims: tuple[Claim, ...] = ()
    reproduction: Reproduction = field(default_factory=Reproduction)
    prices: Prices = field(default_factory=Prices)
    base: str = ""
    overrides: tuple[str, ...] = ()
    comparable: bool = True  # with the published values
    measurements: tuple[Measurement, ...] = ()  # columns of the tables that were not published
    all_runs: tuple[RunSpec, ...] = field(default=(), repr=False, compare=False)

    @property
    def whole(self) -> "Experiment":
        """Return the experiment with all runs of the profile and the seeds of the file."""
        return replace(self, runs=self.all_runs or self.runs)

    @property
    def options(self) -> tuple[str, ...]:
        """The options of the command line that make this experiment of its file."""
        changes = (part for text in self.overrides for part in ("--set", text))
        return ("--profile", self.base, *changes)

    def margin(self, table: Table, row: Row, column: Column) -> float:
        """Return the margin within which a cell is reproduced, in percentage points."""
        default = self.reproduction.margin if table.margin is None else table.margin
        return row.margins.get(column.title, default)

    def table(self, name: str) -> Table:
        """Return the table of this ID or title. Raises: SpecError."""
        for table in self.tables:
            if name.casefold() in (table.id.casefold(), table.title.casefold()):
                return table
        known = ", ".join(table.id for table in self.tables)
        raise SpecError([f"--table {name}: there is no such table; the tables are {known}"])

    def select(self, ids: Iterable[int], option: str = "--only") -> "Experiment":
        """Return the experiment with these runs only. Raises: SpecError for an unknown ID."""
        selected = set(ids)
        known = {run.id for run in self.runs}
        if unknown := selected - known:
            raise SpecError([unknown_ids(option, unknown, known)])
        return self._with_runs(run for run in self.runs if run.id in selected)

    def replicates(self, numbers: Iterable[int]) -> "Experiment":
        """Return the experiment with the replicates of these numbers of every run."""
        return self._with_runs(
            run.model_copy(update={"train": replace(run.train, seed=run.replicate_seed(k))})
            for k in numbers
            for run in self.runs
        )

    def subset(self, only: str | None, seeds: str | None) -> "Experiment":
        """Return the experiment with the runs of `--only` and `--seeds`. Raises: SpecError."""
        experiment = self
        if only is not None:
            experiment = experiment.select(parse_ids_option("--only", only))
        if seeds is not None:
            experiment = experiment.replicates(parse_ids_option("--seeds", seeds))
        return experiment

    def _with_runs(self, runs: Iterable[RunSpec]) -> "Experiment":
        return replace(self, runs=tuple(runs), all_runs=self.all_runs or self.runs)


def unknown_ids(where: str, unknown: Iterable[int], known: Iterable[int]) -> str:
    """Return the message about run IDs that do not exist."""
    named, runs = (", ".join(map(str, sorted(ids))) for ids in (unknown, known))
    return f"{where}: there is no run {named}; the runs are {runs}"


def parse_ids_option(option: str, text: str) -> tuple[int, ...]:
    """Return the numbers given to an option of the command line. Raises: SpecError."""
    try:
        return parse_ids(text)
    except ValueError as error:
        raise SpecError([f"{option} {text}: {error}"]) from None
