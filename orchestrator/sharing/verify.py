"""Checks a bundle with nothing but itself: files, run keys, margins, cells, verdicts, invariants.

Every cell of the paper's tables is derived anew from the margins alone and compared with what the
store and the report in the bundle say.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeGuard

from orchestrator.analysis.margins import ROUNDING, certified_share, read_margins, tied_share
from orchestrator.analysis.report import Report, as_records, make_report
from orchestrator.analysis.tables import Cell, runs_of
from orchestrator.analysis.verdicts import Verdict
from orchestrator.errors import BundleError, NewerStoreError, SpecError, StoreError
from orchestrator.reporting.render import SCHEMA, render
from orchestrator.sharing.archive import Manifest, UnpackedBundle, unpack_bundle
from orchestrator.sharing.bundle import MARGINS, REPORT, STORE, YAML
from orchestrator.sharing.consistency import CORRUPT_RECORD_ERRORS, find_contradictions
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store, StoredRun, snapshot

if TYPE_CHECKING:
    from orchestrator.analysis.margins import Margins

FLOAT = 4  # bytes
TABLES_JSON, TABLES_MARKDOWN = "tables.json", "tables.md"
RELATIVE, ABSOLUTE = 1e-6, 1e-9  # another machine's arithmetic rounds differently


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
class VerificationResult:
    """What is to be said of a bundle. It holds if there are no discrepancies."""

    manifest: Manifest
    note: str  # that of the profile
    tables: tuple[CheckedTable, ...]
    discrepancies: tuple[str, ...]


@dataclass(frozen=True)
class BundleContents:
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


def verify_bundle(file: Path) -> VerificationResult:
    """Check a bundle. Raises: BundleError, OutputError."""
    with unpack_bundle(file) as found:
        manifest, problems = found.manifest, found.problems
        try:
            experiment = SpecFile(found.folder / YAML).experiment(
                manifest.profile, manifest.settings
            )
            with snapshot(found.folder / STORE) as store:
                return _verified(found, BundleContents(found.folder, experiment, store))
        except NewerStoreError as error:  # nothing is wrong with it
            raise BundleError(f"{file}: {str(error).replace(f'{found.folder}/', '')}") from error
        except (SpecError, StoreError) as error:
            problems += tuple(str(error).replace(f"{found.folder}/", "").splitlines())
        except CORRUPT_RECORD_ERRORS as error:  # whatever somebody wrote into the database
            problems += (f"{STORE}: cannot be evaluated: {type(error).__name__}: {error}",)
        return VerificationResult(manifest, "", (), problems)


def _verified(found: UnpackedBundle, opened: BundleContents) -> VerificationResult:
    report = make_report(opened.experiment, opened.store)
    written = read_report(opened.folder / REPORT, report)
    wrong = {cell: list(_cell_problems(cell, opened, written.values)) for cell in report.cells}
    return VerificationResult(
        found.manifest,
        opened.experiment.note,
        tuple(_tables(report, wrong)),
        (
            *found.problems,
            *_run_problems(opened),
            *_margin_problems(opened),
            *report.violations,
            *(line for lines in wrong.values() for line in lines),
            *written.problems,
        ),
    )


def _run_problems(opened: BundleContents) -> Iterator[str]:
    """Runs that are not what their names say, or have no place here."""
    wanted = {run.key for runs in opened.runs.values() for run in runs}
    for run in opened.store.runs():
        yield from (f"{run.key}: {problem}" for problem in find_contradictions(run))
        if run.key not in wanted:
            yield f"{run.key}: is no run of the profile `{opened.experiment.profile}`"


def _margin_problems(opened: BundleContents) -> Iterator[str]:
    """Margins that are not those of the store."""
    keys = {run.key for run in opened.store.runs()}
    for key in sorted(keys | opened.margins.keys()):
        stored = opened.store.margins(key)
        beside = opened.margins.get(key)
        if stored != (None if beside is None else beside.tobytes()):
            yield f"{MARGINS}/{key}.f32: is not what the store has"


def _cell_problems(
    cell: Cell, opened: BundleContents, written: Mapping[Cell, float]
) -> Iterator[str]:
    """What the margins say against a measured cell."""
    if cell.measured is None:
        return
    keys = [run.key for run in opened.runs[cell.run] if run.status is Status.DONE]
    if missing := [key for key in keys if key not in opened.margins]:
        yield f"{cell.name}: cannot be derived without the margins of {', '.join(missing)}"
        return
    margins = [opened.margins[key] for key in keys]
    radius = {column.title: column.radius for column in opened.experiment.columns}[cell.column]
    derived = 100 * fmean(certified_share(one, radius) for one in margins)
    unsure = 100 * (fmean(tied_share(one, radius) for one in margins) + ROUNDING)
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
            dict(Counter(str(report.verdicts[cell].verdict) for cell in cells)),
        )


@dataclass(frozen=True)
class WrittenReport:
    """The report in a bundle: the measured value of each cell, and the contradictions found."""

    values: Mapping[Cell, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def read_report(folder: Path, report: Report) -> WrittenReport:
    """Compare the written tables in a folder with a report made anew, but not their prose."""
    try:
        written = json.loads((folder / TABLES_JSON).read_text(encoding="utf-8"))
        markdown = (folder / TABLES_MARKDOWN).read_text(encoding="utf-8")
    except OSError as error:
        file = Path(str(error.filename)).name
        return _unreadable(folder, file, f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        return _unreadable(folder, TABLES_JSON, f"is not JSON: {error}")
    if not isinstance(written, dict) or written.get("schema") != SCHEMA:
        return _unreadable(folder, TABLES_JSON, f"does not have the schema {SCHEMA}")
    fresh, given = as_records(report), written.get("cells")
    if not isinstance(given, list) or _names(given) != _names(fresh):
        return _unreadable(folder, TABLES_JSON, "its cells are not those of the tables")
    place = f"{folder.name}/{TABLES_JSON}"
    problems = [f"{place}: {line}" for line in _differences(written, _facts(report))]
    for cell, record, now in zip(report.cells, given, fresh, strict=True):
        if lines := list(_differences(record, now)):
            problems.append(f"{place}: {cell.name}: {', '.join(lines)}")
    if _table_lines(markdown) != _table_lines(render(report, "md")):
        problems.append(f"{folder.name}/{TABLES_MARKDOWN}: its tables are not those of the results")
    values = zip(report.cells, (record.get("measured") for record in given), strict=True)
    return WrittenReport(
        {cell: value for cell, value in values if _is_number(value)}, tuple(problems)
    )


def _unreadable(folder: Path, name: str, problem: str) -> WrittenReport:
    return WrittenReport(problems=(f"{folder.name}/{name}: {problem}",))


def _facts(report: Report) -> dict[str, Any]:
    """Return the fields of `tables.json` that are not prose and not cells."""
    return {
        "experiment": report.experiment.name,
        "profile": report.experiment.profile,
        "note": report.experiment.note,
        "verdicts": {str(verdict): report.counts[verdict] for verdict in Verdict},
    }


def _table_lines(markdown: str) -> list[str]:
    """Return the rows of all tables, however wide their columns are."""
    return [" ".join(line.split()) for line in markdown.splitlines() if line.startswith("|")]


def _names(records: list[Any]) -> list[tuple[Any, ...]]:
    """Return which cells these are, as far as they are records of cells."""
    return [
        (one.get("table"), one.get("row"), one.get("column")) if isinstance(one, dict) else ()
        for one in records
    ]


def _differences(written: Mapping[str, Any], fresh: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields whose written value is not the fresh one, up to rounding."""
    for name, value in fresh.items():
        found = written.get(name)
        close = _is_number(found) and _is_number(value) and _close(found, value)
        if found != value and not close:
            yield f"{name} is {found!r}, the results give {value!r}"


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
