"""The runs behind a cell of the tables, and the commands that reproduce them."""

import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aol.provenance import UNKNOWN
from orchestrator.analysis.margins import certified_share, load_margins
from orchestrator.analysis.parts import Part, trained_parts
from orchestrator.analysis.report import Report, as_record
from orchestrator.analysis.tables import Cell, runs_of
from orchestrator.analysis.verdicts import describe_excluded, describe_verdict
from orchestrator.errors import RequestError
from orchestrator.formatting import format_command, format_percent
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.schema import Column
from orchestrator.store import Attempt, Store, StoredRun

RESULTS = "again"  # folder for the reproduced results, beside the explained ones
PATCH = "changes.patch"


@dataclass(frozen=True)
class Origin:
    """A run behind a cell, its value and the commands that reproduce it."""

    run: StoredRun
    replicate: int
    value: float | None  # percent, None if the run is not finished
    from_margins: float | None  # the same, derived from the margins
    attempts: tuple[Attempt, ...]
    parts: tuple[Part, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class CellExplanation:
    """A cell with its verdict and the runs behind it."""

    title: str
    verdict: str  # in sentences
    record: Mapping[str, Any]  # as in the report's JSON
    origins: tuple[Origin, ...]  # empty if nothing was trained


def explain(
    report: Report,
    store: Store,
    name: str,
    column: str | None = None,
    *,
    replicate: int | None = None,
    store_options: Sequence[str] = (),
) -> list[CellExplanation]:
    """Return the explanation of each cell with this name, `Table/Row/Column`, or of this run ID.

    The beginning of a name selects all cells whose names begin so. `store_options` are the command
    line's options that select `store`. Raises: RequestError, RecordError, StoreError.
    """
    experiment = report.experiment
    stored = runs_of(experiment, store)
    columns = {known.title: known for known in experiment.columns}
    explanations = []
    trained: set[int] = set()
    for title, cell in _find_cells(report, name, column).items():
        origins = [
            _origin(experiment, store, run, columns[cell.column], store_options)
            for run in stored[cell.run]
        ]
        trained |= {origin.replicate for origin in origins}
        selected = tuple(origin for origin in origins if replicate in (None, origin.replicate))
        verdict = report.verdicts[cell]
        if experiment.comparable:
            text = describe_verdict(verdict)
        else:
            text = " ".join([_describe_incomparable(cell, experiment), *describe_excluded(cell)])
        record = as_record(verdict, comparable=experiment.comparable)
        explanations.append(CellExplanation(title, text, record, selected))
    if replicate is not None and replicate not in trained:
        known = ", ".join(map(str, sorted(trained))) or "none"
        raise RequestError(f"--replicate {replicate}: not in the store; its replicates: {known}")
    return explanations


def _describe_incomparable(cell: Cell, experiment: Experiment) -> str:
    return (
        f"{format_percent(cell.measured)} measured, {cell.published} published; not compared, "
        f"because the profile `{experiment.profile}` is not comparable with the paper."
    )


def common_patch(explanations: Sequence[CellExplanation], attempt: int | None = None) -> str:
    """Return the patch that all runs behind these cells share, or this attempt of each.

    Raises: RequestError.
    """
    patches = {
        part.attempt.git_diff
        for cell in explanations
        for origin in cell.origins
        for part in origin.parts
        if attempt in (None, part.number)
    }
    if not patches:
        raise RequestError(
            "no run behind it was trained; `missing` lists what to train"
            if attempt is None
            else f"--attempt {attempt}: no run behind it has epochs of this attempt with a recipe "
            "of its own; `explain` without it lists them"
        )
    if len(patches) > 1:
        raise RequestError(
            "its runs have different patches; select one run with --replicate, or a part of it "
            "with --attempt"
        )
    (patch,) = patches
    if patch is None:
        raise RequestError(
            "its run has no patch: the source was as committed, or its changes were too large to "
            "store"
        )
    return patch


def _find_cells(report: Report, name: str, column: str | None) -> dict[str, Cell]:
    """Return the cells that match, by their full names. Raises: RequestError."""
    cells = {
        f"{filled.table.title}/{cell.row}/{cell.column}": cell
        for filled in report.tables
        for row in filled.cells
        for cell in row
    }
    if not cells:
        raise RequestError(f"{report.experiment.path}: there are no `tables`, so there is no cell")
    if name.isdecimal():
        matching = {title: cell for title, cell in cells.items() if cell.run == int(name)}
        if not matching:
            known = sorted({cell.run for cell in cells.values()})
            raise RequestError(
                f"there is no run {name} in the tables; their runs: {', '.join(map(str, known))}"
            )
    else:
        matching = {
            title: cell
            for title, cell in cells.items()
            if _begins(title, name) or _begins(cell.name, name)
        }
        if not matching:
            closest = difflib.get_close_matches(name, list(cells), n=1, cutoff=0)[0]
            raise RequestError(
                f"there is no cell {name!r}; names are Table/Row/Column, the closest is {closest!r}"
            )
    if column is None:
        return matching
    in_column = {
        title: cell
        for title, cell in matching.items()
        if cell.column.casefold() == column.casefold()
    }
    if not in_column:
        columns = dict.fromkeys(cell.column for cell in matching.values())
        raise RequestError(f"there is no column {column!r}; the columns: {', '.join(columns)}")
    return in_column


def _begins(title: str, name: str) -> bool:
    """Return whether a title begins with the parts of a name, regardless of case."""
    return f"{title}/".casefold().startswith(f"{name.strip('/')}/".casefold())


def _origin(
    experiment: Experiment,
    store: Store,
    run: StoredRun,
    column: Column,
    store_options: Sequence[str],
) -> Origin:
    (spec,) = (spec for spec in experiment.runs if spec.id == run.run_id)
    replicate = spec.replicate_number(run.seed)
    value = store.final([run.key]).get(run.key, {}).get(column.metric)
    margins = load_margins(store, run) if value is not None else None
    attempts = tuple(store.attempts(run.key))
    parts = tuple(trained_parts(attempts, run.epoch))
    return Origin(
        run,
        replicate,
        None if value is None else 100 * value,
        None if margins is None else 100 * certified_share(margins, column.radius),
        attempts,
        parts,
        tuple(_commands(experiment, run.run_id, replicate, parts, store_options)),
    )


def _commands(
    experiment: Experiment,
    run_id: int,
    replicate: int,
    parts: Sequence[Part],
    store_options: Sequence[str],
) -> Iterator[str]:
    """Yield the commands that train a run as it was trained, part by part, into another folder.

    `store_options` select the store that holds the patches.
    """
    spec, options = experiment.path, experiment.options
    runs = ("--only", run_id, "--seeds", replicate, "--results", RESULTS)
    train = format_command("run", spec, *options, *runs)
    if not parts:
        yield train
    for part in parts:
        attempt, several = part.attempt, len(parts) > 1
        if several:
            end = "" if part is parts[-1] else f"; interrupt it after epoch {part.last}"
            yield f"# {part.epochs}, on {attempt.device or 'an unknown device'}{end}"
        if attempt.git_diff is not None:
            which = ("--spec", spec, *options, "--replicate", replicate, *store_options)
            which = (*which, "--attempt", part.number) if several else which
            yield f"{format_command('explain', run_id, *which, '--diff')} > {PATCH}"
        if attempt.git_commit not in (None, UNKNOWN):
            force = "--force " if several else ""  # drops the patch of the part before
            commit = shlex.quote(attempt.git_commit.partition("+")[0])
            yield f"git checkout {force}{commit}"
        if attempt.git_diff is not None:
            yield f"git apply {PATCH}"
        yield train
