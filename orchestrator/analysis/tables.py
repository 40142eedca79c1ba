"""The cells of the paper's tables, filled from the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from orchestrator.errors import RequestError
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.spec.schema import Column, Row, Table
from orchestrator.store import Status, Store, StoredRun

UNFINISHED = (Status.PENDING, Status.RUNNING, Status.INTERRUPTED, Status.FAILED)
GIVEN_UP = {Status.DIVERGED: "diverged", Status.UNSOUND: "is unsound"}  # not in any table


@dataclass(frozen=True)
class Cell:
    """One number of a table: what the paper prints and what was measured, in percent."""

    table: str
    row: str
    run: int
    column: str
    metric: str
    published: float
    margin: float  # within which it counts as reproduced, in percentage points
    images: int  # of the test set
    values: tuple[float, ...] = ()  # one per finished seed
    started: bool = False  # whether a seed trained at least one epoch and is not finished
    given_up: tuple[str, ...] = ()  # of its run, as far as that is so: diverged, is unsound

    @property
    def name(self) -> str:
        """How a cell is called: table, row and column."""
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def measured(self) -> float | None:
        """The mean over the seeds."""
        return fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """The standard deviation between the seeds, None with fewer than two."""
        return stdev(self.values) if self.seeds > 1 else None

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percentage points."""
        return None if self.measured is None else self.measured - self.published

    @property
    def seeds(self) -> int:
        """How many finished runs it is the mean of."""
        return len(self.values)


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper with what was measured for it."""

    table: Table
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell, ...], ...]  # a tuple per row
    unsound: tuple[str, ...] = ()  # a line per run that is left out
    diverged: tuple[str, ...] = ()  # likewise

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line per run that was trained and does not count."""
        return self.unsound + self.diverged


def fill_tables(experiment: Experiment, store: Store) -> list[FilledTable]:
    """Every table with the last epoch of the profile's finished runs.

    A run counts if it was trained with exactly the profile's settings: with the seed of the
    file, or as one of its replicates. Runs that diverged or whose network is not sound are left
    out and named.
    """
    stored = runs_of(experiment, store)
    final = store.final([run.key for found in stored.values() for run in found])
    runs = {run.id: run for run in experiment.runs}

    def cell(table: Table, row: Row, column: Column, published: float) -> Cell:
        found = stored.get(row.run, [])
        statuses = {run.status for run in found}
        values = [final[run.key].get(column.metric) for run in found if run.key in final]
        return Cell(
            table=table.id,
            row=row.label,
            run=row.run,
            column=column.title,
            metric=column.metric,
            published=published,
            margin=experiment.margin(table, row, column),
            images=runs[row.run].train.data.test_images if row.run in runs else 0,
            values=tuple(100 * value for value in values if value is not None),
            started=any(run.epoch and run.status in UNFINISHED for run in found),
            given_up=tuple(GIVEN_UP[one] for one in GIVEN_UP if one in statuses),
        )

    return [
        FilledTable(
            table,
            experiment.columns,
            tuple(
                tuple(
                    cell(table, row, column, published)
                    for column, published in zip(experiment.columns, row.published, strict=True)
                )
                for row in table.rows
            ),
            unsound=_named(table, stored, Status.UNSOUND),
            diverged=_named(table, stored, Status.DIVERGED),
        )
        for table in experiment.tables
    ]


def note_cells(experiment: Experiment, store: Store) -> None:
    """Put the published numbers beside the results, for the store's view `v_cells`."""
    runs = {run.id: run for run in experiment.runs}
    store.replace_cells(
        experiment.profile,
        (
            {
                "table_id": table.id,
                "row_label": row.label,
                "column_title": column.title,
                "run_id": row.run,
                "seed": runs[row.run].train.seed,
                "digest": runs[row.run].train.digest(),
                "metric": column.metric,
                "published": published,
                "margin": experiment.margin(table, row, column),
            }
            for table in experiment.tables
            for row in table.rows
            for column, published in zip(experiment.columns, row.published, strict=True)
        ),
    )


def runs_of(experiment: Experiment, store: Store) -> dict[int, list[StoredRun]]:
    """By run ID what the store holds of the profile's runs and their replicates."""
    wanted = {run.id: run for run in experiment.runs}
    digests = {run_id: run.train.digest() for run_id, run in wanted.items()}
    found: dict[int, list[StoredRun]] = {run_id: [] for run_id in wanted}
    for stored in store.runs(ids=wanted, digests=set(digests.values())):
        run = wanted[stored.run_id]
        if stored.digest == digests[run.id] and run.is_replicate(stored.seed):
            found[run.id].append(stored)
    return found


def finished_run(experiment: Experiment, store: Store, run: RunSpec) -> StoredRun:
    """What the store holds of a finished run of the profile. Raises: RequestError."""
    for stored in runs_of(experiment, store)[run.id]:
        if stored.seed == run.train.seed and stored.status is Status.DONE:
            return stored
    raise RequestError(
        f"run {run.id} with seed {run.train.seed} of the profile `{experiment.profile}` is not "
        "finished; `status` shows what is"
    )


def _named(
    table: Table, stored: Mapping[int, Sequence[StoredRun]], status: Status
) -> tuple[str, ...]:
    """A line per run of a table that is left out for this."""
    return tuple(
        f"Run {run.run_id} with seed {run.seed} is left out, {status}: {run.error}"
        for row in table.rows
        for run in stored.get(row.run, [])
        if run.status is status
    )
