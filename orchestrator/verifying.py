"""Checks a bundle with nothing but itself: files, run keys, margins, cells, verdicts, invariants.

Every cell of the paper's tables is derived anew from the margins alone and compared with what the
store and the report in the bundle say.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from aol.checkout import checkout
from orchestrator.archive import BundleError, Manifest, Unpacked, unpacked
from orchestrator.bundling import MARGINS, REPORT, STORE, YAML
from orchestrator.cells import Cell, runs_of
from orchestrator.coherence import HOSTILE, incoherences
from orchestrator.document import SpecError
from orchestrator.margins import ROUNDING, read_margins, share, tied
from orchestrator.provenance import program_version
from orchestrator.report import Report, make_report
from orchestrator.rereading import reread
from orchestrator.spec import Experiment
from orchestrator.specfile import SpecFile
from orchestrator.store import (
    NewerStoreError,
    Status,
    Store,
    StoredRun,
    StoreError,
    snapshot,
)

if TYPE_CHECKING:
    from orchestrator.margins import Margins

FLOAT = 4  # bytes


class DiscrepancyError(Exception):
    """What does not hold in a bundle, a line each."""

    exit_code = 4


@dataclass(frozen=True)
class CheckedTable:
    """What was found of one of the paper's tables."""

    id: str
    title: str
    cells: int
    measured: int
    confirmed: int  # of the measured: the margins give what the store and the report have
    verdicts: Mapping[str, int]


@dataclass(frozen=True)
class Verified:
    """What is to be said of a bundle. It holds if there are no discrepancies."""

    manifest: Manifest
    note: str  # that of the profile
    tables: tuple[CheckedTable, ...]
    discrepancies: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Opened:
    """The results in a bundle."""

    folder: Path
    experiment: Experiment
    store: Store

    @cached_property
    def runs(self) -> Mapping[int, list[StoredRun]]:
        """The profile's runs, by ID."""
        return runs_of(self.experiment, self.store)

    @cached_property
    def margins(self) -> "Mapping[str, Margins]":
        """The margins that lie beside the store, by their run's key."""
        return {
            path.stem: read_margins(path.read_bytes())
            for path in sorted((self.folder / MARGINS).glob("*.f32"))
            if path.stat().st_size and path.stat().st_size % FLOAT == 0
        }


def verify(file: Path) -> Verified:
    """Check a bundle. Raises: BundleError, UnpackingError."""
    with unpacked(file) as found:
        manifest, problems = found.manifest, found.problems
        try:
            experiment = SpecFile(found.folder / YAML).experiment(
                manifest.profile, manifest.settings
            )
            with snapshot(found.folder / STORE) as store:
                return _verified(found, Opened(found.folder, experiment, store))
        except NewerStoreError as error:  # nothing is wrong with it
            raise BundleError(f"{file}: {str(error).replace(f'{found.folder}/', '')}") from error
        except (SpecError, StoreError) as error:
            problems += tuple(str(error).replace(f"{found.folder}/", "").splitlines())
        except HOSTILE as error:  # whatever somebody wrote into the database
            problems += (f"{STORE}: cannot be evaluated: {type(error).__name__}: {error}",)
        return Verified(manifest, "", (), problems, ())


def _verified(found: Unpacked, opened: Opened) -> Verified:
    report = make_report(opened.experiment, opened.store)
    written = reread(opened.folder / REPORT, report, same_program=_is_ours(found.manifest))
    wrong = {cell: list(_cell_problems(cell, opened, written.values)) for cell in report.cells}
    return Verified(
        found.manifest,
        opened.experiment.note,
        tuple(_tables(report, wrong)),
        (
            *found.problems,
            *_run_problems(opened),
            *_margin_problems(opened),
            *report.broken,
            *(line for lines in wrong.values() for line in lines),
            *written.problems,
        ),
        written.notes,
    )


def _is_ours(manifest: Manifest) -> bool:
    """Whether this very program made it, as far as that is known: nothing is outside git."""
    if manifest.commit is None:
        return False
    return (manifest.commit, manifest.program) == (checkout().commit, program_version())


def _run_problems(opened: Opened) -> Iterator[str]:
    """Runs that are not what their names say, or have no place here."""
    wanted = {run.key for runs in opened.runs.values() for run in runs}
    for run in opened.store.runs():
        yield from (f"{run.key}: {problem}" for problem in incoherences(run))
        if run.key not in wanted:
            yield f"{run.key}: is no run of the profile `{opened.experiment.profile}`"


def _margin_problems(opened: Opened) -> Iterator[str]:
    """Margins that are not those of the store."""
    keys = {run.key for run in opened.store.runs()}
    for key in sorted(keys | opened.margins.keys()):
        stored = opened.store.margins(key)
        beside = opened.margins.get(key)
        if stored != (None if beside is None else beside.tobytes()):
            yield f"{MARGINS}/{key}.f32: is not what the store has"


def _cell_problems(cell: Cell, opened: Opened, written: Mapping[Cell, float]) -> Iterator[str]:
    """What the margins say against a measured cell."""
    if cell.measured is None:
        return
    keys = [run.key for run in opened.runs[cell.run] if run.status is Status.DONE]
    if missing := [key for key in keys if key not in opened.margins]:
        yield f"{cell.name}: cannot be derived without the margins of {', '.join(missing)}"
        return
    margins = [opened.margins[key] for key in keys]
    radius = {column.title: column.radius for column in opened.experiment.columns}[cell.column]
    derived = 100 * fmean(share(one, radius) for one in margins)
    unsure = 100 * (fmean(tied(one, radius) for one in margins) + ROUNDING)
    said = {"the store": cell.measured}
    if cell in written:
        said[f"{REPORT}/tables.json"] = written[cell]
    for where, value in said.items():
        if not abs(value - derived) <= unsure:
            yield f"{cell.name}: the margins give {derived:.4f}, {where} has {value:.4f}"


def _tables(report: Report, wrong: Mapping[Cell, list[str]]) -> Iterator[CheckedTable]:
    for filled in report.tables:
        cells = [cell for row in filled.cells for cell in row]
        measured = [cell for cell in cells if cell.measured is not None]
        yield CheckedTable(
            filled.table.id,
            filled.table.title,
            len(cells),
            len(measured),
            sum(not wrong[cell] for cell in measured),
            dict(Counter(str(report.judged[cell].verdict) for cell in cells)),
        )
