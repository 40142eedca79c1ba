"""The cells of the paper's tables, filled from the store."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from orchestrator.analysis.certificates import measure
from orchestrator.errors import RequestError
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.spec.fields import Measurement
from orchestrator.spec.schema import Column, Row, Table
from orchestrator.store import Status, Store, StoredRun
from orchestrator.store.records import settings_conflict

UNFINISHED = (Status.PENDING, Status.RUNNING, Status.INTERRUPTED, Status.FAILED)
EXCLUDED = {Status.DIVERGED: "diverged", Status.UNSOUND: "is unsound"}  # not in any table


@dataclass(frozen=True)
class Cell:
    """One number of a table, published and measured, in percent."""

    table: str
    row: str
    run: int
    column: str
    metric: str
    published: float
    margin: float  # largest difference that counts as reproduced, in percentage points
    images: int  # in the test set
    values: tuple[float, ...] = ()  # one per finished seed
    started: bool = False  # a seed has trained at least one epoch and is not finished
    excluded: tuple[str, ...] = ()  # seeds that do not count: "seed 0 diverged"

    @property
    def name(self) -> str:
        """Return the cell's name: table, row and column."""
        return f"{self.table}/{self.row}/{self.column}"

    @property
    def measured(self) -> float | None:
        """Return the mean over the seeds."""
        return fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Return the standard deviation between the seeds, None with fewer than two."""
        return stdev(self.values) if self.seeds > 1 else None

    @property
    def difference(self) -> float | None:
        """Return measured minus published, in percentage points."""
        return None if self.measured is None else self.measured - self.published

    @property
    def seeds(self) -> int:
        """Return the number of finished seeds."""
        return len(self.values)


@dataclass(frozen=True)
class FilledTable:
    """A table of the paper with its measured values."""

    table: Table
    columns: tuple[Column, ...]
    cells: tuple[tuple[Cell, ...], ...]  # a tuple per row
    measurements: tuple[
        Measurement, ...
    ] = ()  # titles of further columns, without published values
    measured: tuple[tuple[float | None, ...], ...] = ()  # their means over the seeds, per row
    unsound: tuple[str, ...] = ()  # a line per run that is left out as unsound
    diverged: tuple[str, ...] = ()  # a line per run that is left out as diverged

    @property
    def excluded(self) -> tuple[str, ...]:
        """Return a line per trained run that does not count."""
        return self.unsound + self.diverged


def fill_tables(experiment: Experiment, store: Store) -> list[FilledTable]:
    """Return every table with the last epoch of the profile's finished runs.

    A run counts if it was trained with exactly the profile's settings, either with the seed of the
    file or as a replicate. Runs that diverged and runs with an unsound network are left out; each
    has a line in the table.
    """
    stored = runs_of(experiment, store)
    final = store.final([run.key for runs in stored.values() for run in runs])
    specs = {run.id: run for run in experiment.runs}

    def cell(table: Table, row: Row, column: Column, published: float) -> Cell:
        runs = stored.get(row.run, [])
        shares = [final[run.key].get(column.metric) for run in runs if run.key in final]
        return Cell(
            table=table.id,
            row=row.label,
            run=row.run,
            column=column.title,
            metric=column.metric,
            published=published,
            margin=experiment.margin(table, row, column),
            images=specs[row.run].train.data.test_images if row.run in specs else 0,
            values=tuple(100 * share for share in shares if share is not None),
            started=any(run.epoch and run.status in UNFINISHED for run in runs),
            excluded=tuple(
                f"seed {run.seed} {EXCLUDED[run.status]}" for run in runs if run.status in EXCLUDED
            ),
        )

    def measurements(row: Row) -> tuple[float | None, ...]:
        done = [run for run in stored.get(row.run, []) if run.status is Status.DONE]
        return tuple(
            _mean(measure(name, run, specs[row.run]) for run in done)
            for name in experiment.measurements
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
            experiment.measurements,
            tuple(map(measurements, table.rows)),
            unsound=_excluded_lines(table, stored, Status.UNSOUND),
            diverged=_excluded_lines(table, stored, Status.DIVERGED),
        )
        for table in experiment.tables
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def runs_of(experiment: Experiment, store: Store) -> dict[int, list[StoredRun]]:
    """Return the stored runs of the profile and their replicates, by run ID."""
    specs = {run.id: run for run in experiment.runs}
    digests = {run_id: run.train.digest() for run_id, run in specs.items()}
    runs: dict[int, list[StoredRun]] = {run_id: [] for run_id in specs}
    for stored in store.runs(ids=specs, digests=set(digests.values())):
        spec = specs[stored.run_id]
        same = stored.digest == digests[spec.id] and not settings_conflict(stored, spec.train)
        if same and spec.is_replicate(stored.seed):
            runs[spec.id].append(stored)
    return runs


def finished_runs(experiment: Experiment, store: Store) -> list[StoredRun]:
    """Return the finished runs of the profile and their replicates."""
    stored = runs_of(experiment, store).values()
    return [run for runs in stored for run in runs if run.status is Status.DONE]


def finished_run(experiment: Experiment, store: Store, run: RunSpec) -> StoredRun:
    """Return a finished run of the profile as it is stored. Raises: RequestError."""
    by_seed = {stored.seed: stored for stored in runs_of(experiment, store)[run.id]}
    stored = by_seed.get(run.train.seed)
    if stored and stored.status is Status.DONE:
        return stored
    reason = EXCLUDED.get(stored.status) if stored else None
    raise RequestError(
        f"run {run.id} with seed {run.train.seed} of the profile `{experiment.profile}` "
        f"{reason or 'is not finished'}; list the finished runs with `status`"
    )


def _excluded_lines(
    table: Table, stored: Mapping[int, Sequence[StoredRun]], status: Status
) -> tuple[str, ...]:
    return tuple(
        f"Run {run.run_id} with seed {run.seed} is left out, {status}: {run.error}"
        for row in table.rows
        for run in stored.get(row.run, [])
        if run.status is status
    )
