"""Where a number of the tables comes from, down to the commands that make it again."""

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.analysis.margins import certified_share, load_margins
from orchestrator.analysis.report import Report, as_record
from orchestrator.analysis.tables import Cell, runs_of
from orchestrator.analysis.verdicts import describe_verdict
from orchestrator.errors import RequestError
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.schema import Column
from orchestrator.store import Attempt, Store, StoredRun

AGAIN = "again"  # folder of results for what is made again, beside those that are explained
PATCH = "changes.patch"


@dataclass(frozen=True)
class Origin:
    """A run behind a cell, where its value came from and how to make it again."""

    run: StoredRun
    replicate: int
    value: float | None  # percent, None if the run is not finished
    from_margins: float | None  # the same, derived from the margins
    attempts: tuple[Attempt, ...]
    diff: str | None
    commands: tuple[str, ...]


@dataclass(frozen=True)
class CellExplanation:
    """A cell with everything it rests on."""

    title: str
    verdict: str  # in words
    record: Mapping[str, Any]  # as in the report's JSON
    origins: tuple[Origin, ...]  # none if nothing was trained


def explain(
    report: Report,
    store: Store,
    name: str,
    column: str | None = None,
    *,
    replicate: int | None = None,
    places: Sequence[str] = (),
) -> list[CellExplanation]:
    """The cells of this name, `Table/Row/Column`, or of this run ID, each with its runs.

    The beginning of a name means all cells that begin so. `places` are the options that lead the
    commands of its runs to `store`. Raises: RequestError, RecordError, StoreError.
    """
    experiment = report.experiment
    stored = runs_of(experiment, store)
    columns = {one.title: one for one in experiment.columns}
    explained = []
    trained: set[int] = set()
    for title, cell in _found(report, name, column).items():
        origins = [
            _origin(experiment, store, run, columns[cell.column], places)
            for run in stored[cell.run]
        ]
        trained |= {one.replicate for one in origins}
        chosen = tuple(one for one in origins if replicate in (None, one.replicate))
        judged = report.judged[cell]
        explained.append(
            CellExplanation(title, describe_verdict(judged), as_record(judged), chosen)
        )
    if replicate is not None and replicate not in trained:
        known = f"only {', '.join(map(str, sorted(trained)))}" if trained else "nor is any other"
        raise RequestError(f"--replicate {replicate} of it is not in the store, {known}")
    return explained


def _found(report: Report, name: str, column: str | None) -> dict[str, Cell]:
    """The cells that are meant, by their full names. Raises: RequestError."""
    cells = {
        f"{filled.table.title}/{cell.row}/{cell.column}": cell
        for filled in report.tables
        for row in filled.cells
        for cell in row
    }
    if not cells:
        raise RequestError(f"{report.experiment.path}: has no `tables`, so there is no cell")
    if name.isdecimal():
        found = {title: cell for title, cell in cells.items() if cell.run == int(name)}
        known = sorted({str(cell.run) for cell in cells.values()}, key=int)
        if not found:
            raise RequestError(f"no table has a run {name}, only {', '.join(known)}")
    else:
        found = {
            title: cell
            for title, cell in cells.items()
            if _begins(title, name) or _begins(cell.name, name)
        }
        if not found:
            raise RequestError(f"there is no cell {name!r}; {_nearest(name, list(cells))}")
    if column is not None:
        columns = dict.fromkeys(cell.column for cell in found.values())
        found = {title: cell for title, cell in found.items() if _same(cell.column, column)}
        if not found:
            raise RequestError(f"there is no column {column!r}, only {', '.join(columns)}")
    return found


def _begins(title: str, name: str) -> bool:
    return f"{title}/".casefold().startswith(f"{name.strip('/')}/".casefold())


def _same(title: str, name: str) -> bool:
    return title.casefold() == name.casefold()


def _nearest(name: str, titles: list[str]) -> str:
    close = difflib.get_close_matches(name, titles, n=1, cutoff=0)[0]
    return f"cells are called Table/Row/Column, the nearest is {close!r}"


def _origin(
    experiment: Experiment, store: Store, run: StoredRun, column: Column, places: Sequence[str]
) -> Origin:
    specs = {one.id: one for one in experiment.runs}
    replicate = specs[run.run_id].replicate_number(run.seed)
    value = store.final([run.key]).get(run.key, {}).get(column.metric)
    margins = load_margins(store, run) if value is not None else None
    diff = store.git_diff(run.key)
    return Origin(
        run,
        replicate,
        None if value is None else 100 * value,
        None if margins is None else 100 * certified_share(margins, column.radius),
        tuple(store.attempts(run.key)),
        diff,
        tuple(_commands(experiment, run, replicate, places if diff is not None else None)),
    )


def _commands(
    experiment: Experiment, run: StoredRun, replicate: int, patch_from: Sequence[str] | None
) -> Iterator[str]:
    """What to type to train the run again as it was trained, into a folder of its own.

    `patch_from` leads to the store with its changes, if there were any.
    """
    program, spec = "python -m orchestrator", shlex.quote(str(experiment.path))
    options = shlex.join(experiment.options)
    if patch_from is not None:
        store = shlex.join(("--replicate", str(replicate), *patch_from, "--diff"))
        yield f"{program} explain {run.run_id} --spec {spec} {options} {store} > {PATCH}"
    if run.git_commit:
        yield f"git checkout {run.git_commit.partition('+')[0]}"
    if patch_from is not None:
        yield f"git apply {PATCH}"
    yield (
        f"{program} run {spec} {options} --only {run.run_id} --seeds {replicate} --results {AGAIN}"
    )


def patch_of(explained: list[CellExplanation]) -> str:
    """The one patch that all the runs behind these cells share. Raises: RequestError."""
    patches = {origin.diff for one in explained for origin in one.origins}
    if not patches:
        raise RequestError("nothing of it was trained; `missing` says what that would take")
    if len(patches) > 1:
        raise RequestError("its runs have different patches; name one with --replicate")
    (patch,) = patches
    if patch is None:
        raise RequestError("its source had no changes beside its commit, or they were not kept")
    return patch
