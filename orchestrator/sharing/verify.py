"""Verifying a bundle on its own: files, run keys, margins, cells, verdicts, invariants.

Every cell of the tables is derived again from the margins alone, and compared with the store and
the report in the bundle.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeGuard

from aol.reading import parse_json, read_limited
from aol.text import joined_lines
from orchestrator.analysis.claims import Basis, claim_record
from orchestrator.analysis.margins import ROUNDING, certified_share, read_margins, tied_share
from orchestrator.analysis.report import Report, as_records, make_report
from orchestrator.analysis.tables import Cell, runs_of
from orchestrator.analysis.verdicts import Verdict
from orchestrator.errors import BundleError, NewerStoreError, RecordError, SpecError, StoreError
from orchestrator.reporting.render import SCHEMA, measurement_records, render
from orchestrator.sharing.archive import Manifest, UnpackedBundle, unpack_bundle
from orchestrator.sharing.bundle import MARGINS, REPORT, STORE, YAML
from orchestrator.sharing.consistency import CORRUPT_RECORD_ERRORS, find_contradictions
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store, StoredRun, snapshot

if TYPE_CHECKING:
    from orchestrator.analysis.margins import Margins

FLOAT_BYTES = 4
TABLES_JSON, TABLES_MARKDOWN = "tables.json", "tables.md"
OLDER_REPORTS = {"comparable": True, "measurements": []}  # what they had, but did not write
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 1e-6, 1e-9  # machines round differently


@dataclass(frozen=True)
class CheckedTable:
    """The result for one of the paper's tables."""

    id: str
    title: str
    cells: int
    measured: int
    confirmed: int  # measured cells that agree with the margins
    verdicts: Mapping[str, int]  # none if the profile is not comparable with the paper


@dataclass(frozen=True)
class VerificationResult:
    """The result of verifying a bundle, which is valid if there are no discrepancies."""

    manifest: Manifest
    note: str  # of the profile
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
        """Return the profile's runs by ID."""
        return runs_of(self.experiment, self.store)

    @cached_property
    def margins(self) -> "Mapping[str, Margins]":
        """Return the margins stored as files, by the key of their run."""
        return {
            path.stem: read_margins(read_limited(path))
            for path in sorted((self.folder / MARGINS).glob("*.f32"))
            if path.stat().st_size and path.stat().st_size % FLOAT_BYTES == 0
        }


@dataclass(frozen=True)
class WrittenReport:
    """The report in a bundle: the measured value of each cell, and the contradictions found."""

    values: Mapping[Cell, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def verify_bundle(file: Path) -> VerificationResult:
    """Verify a bundle. Raises: BundleError, OutputError."""
    with unpack_bundle(file) as found:
        manifest, problems = found.manifest, found.problems
        try:
            experiment = SpecFile(found.folder / YAML).experiment(
                manifest.profile, manifest.settings
            )
            with snapshot(found.folder / STORE) as store:
                return _verify(found, BundleContents(found.folder, experiment, store))
        except NewerStoreError as error:  # not a fault of the bundle
            raise BundleError(f"{file}: {str(error).replace(f'{found.folder}/', '')}") from error
        except (SpecError, StoreError, RecordError) as error:
            problems += tuple(str(error).replace(f"{found.folder}/", "").splitlines())
        except CORRUPT_RECORD_ERRORS as error:
            problems += (f"{STORE}: cannot be evaluated: {type(error).__name__}: {error}",)
        return VerificationResult(manifest, "", (), problems)


def _verify(found: UnpackedBundle, bundle: BundleContents) -> VerificationResult:
    report = make_report(bundle.experiment, bundle.store)
    written = _read_report(bundle.folder / REPORT, report)
    problems = {cell: list(_cell_problems(cell, bundle, written.values)) for cell in report.cells}
    return VerificationResult(
        found.manifest,
        bundle.experiment.note,
        tuple(_tables(report, problems)),
        (
            *found.problems,
            *_run_problems(bundle),
            *_margin_problems(bundle),
            *report.violations,
            *(line for lines in problems.values() for line in lines),
            *written.problems,
        ),
    )


def _run_problems(bundle: BundleContents) -> Iterator[str]:
    """Yield the runs that contradict themselves or do not belong to the profile."""
    expected = {run.key for runs in bundle.runs.values() for run in runs}
    for run in bundle.store.runs():
        yield from (f"{run.key}: {problem}" for problem in find_contradictions(run))
        if run.key not in expected:
            yield f"{run.key}: is not a run of the profile `{bundle.experiment.profile}`"


def _margin_problems(bundle: BundleContents) -> Iterator[str]:
    """Yield the margins that differ from those in the store."""
    keys = {run.key for run in bundle.store.runs()}
    for key in sorted(keys | bundle.margins.keys()):
        stored = bundle.store.margins(key)
        exported = bundle.margins.get(key)
        if stored != (None if exported is None else exported.tobytes()):
            yield f"{MARGINS}/{key}.f32: differs from the margins in the store"


def _cell_problems(
    cell: Cell, bundle: BundleContents, written: Mapping[Cell, float]
) -> Iterator[str]:
    """Yield the values of a measured cell that differ from those derived from the margins."""
    if cell.measured is None:
        return
    keys = [run.key for run in bundle.runs[cell.run] if run.status is Status.DONE]
    if missing := [key for key in keys if key not in bundle.margins]:
        yield f"{cell.name}: cannot be derived without the margins of {', '.join(missing)}"
        return
    margins = [bundle.margins[key] for key in keys]
    radius = {column.title: column.radius for column in bundle.experiment.columns}[cell.column]
    derived = 100 * fmean(certified_share(one, radius) for one in margins)
    tolerance = 100 * (fmean(tied_share(one, radius) for one in margins) + ROUNDING)
    values = {"the store": cell.measured}
    if cell in written:
        values[f"{REPORT}/tables.json"] = written[cell]
    for where, value in values.items():
        if not abs(value - derived) <= tolerance:
            yield f"{cell.name}: the margins give {derived:.4f}, {where} has {value:.4f}"


def _tables(report: Report, problems: Mapping[Cell, list[str]]) -> Iterator[CheckedTable]:
    comparable = report.experiment.comparable
    for filled in report.tables:
        cells = [cell for row in filled.cells for cell in row]
        measured = [cell for cell in cells if cell.measured is not None]
        yield CheckedTable(
            filled.table.id,
            filled.table.title,
            len(cells),
            len(measured),
            sum(not problems[cell] for cell in measured),
            dict(Counter(str(report.verdicts[cell].verdict) for cell in cells if comparable)),
        )


def _read_report(folder: Path, report: Report) -> WrittenReport:
    """Compare the written tables in a folder with a new report, but not their prose."""
    try:
        written = parse_json(read_limited(folder / TABLES_JSON))
        markdown = read_limited(folder / TABLES_MARKDOWN).decode()
    except OSError as error:
        file = Path(str(error.filename)).name
        return _unreadable(folder, file, f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        return _unreadable(folder, TABLES_MARKDOWN, f"is not UTF-8: {error}")
    except ValueError as error:
        return _unreadable(folder, TABLES_JSON, f"is not JSON: {error}")
    if not isinstance(written, dict) or written.get("schema") != SCHEMA:
        return _unreadable(folder, TABLES_JSON, f"does not have the schema {SCHEMA}")
    fresh, given = as_records(report), written.get("cells")
    if not isinstance(given, list) or _names(given) != _names(fresh):
        return _unreadable(folder, TABLES_JSON, "its cells differ from those of the tables")
    place = f"{folder.name}/{TABLES_JSON}"
    complete = OLDER_REPORTS | written
    problems = [f"{place}: {line}" for line in _differences(complete, _facts(report))]
    problems += [f"{place}: {line}" for line in _claim_differences(written, report)]
    for cell, record, now in zip(report.cells, given, fresh, strict=True):
        if lines := list(_differences(record, now)):
            problems.append(f"{place}: {cell.name}: {', '.join(lines)}")
    if _table_lines(markdown) != _table_lines(render(report, "md")):
        problems.append(f"{folder.name}/{TABLES_MARKDOWN}: its tables differ from the results")
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
        "comparable": report.experiment.comparable,
        "measurements": measurement_records(report),
        "verdicts": {str(verdict): report.counts[verdict] for verdict in Verdict},
    }


def _claim_differences(written: Mapping[str, Any], report: Report) -> Iterator[str]:
    """Yield the claims whose written evidence is not that of the results.

    Where it rests on drawn images, only the verdict is compared: other versions draw others.
    """
    given = written.get("claims")
    records = given if isinstance(given, list) else []
    by_id = {one["id"]: one for one in records if isinstance(one, dict) and "id" in one}
    if list(by_id) != [judged.claim.id for judged in report.claims]:
        yield "its claims differ from those of the experiment"
        return
    for judged in report.claims:
        fresh = claim_record(judged)
        fresh.pop("probability_first")
        steps = fresh.pop("steps")
        drawn = judged.assessment is not None and judged.assessment.basis is Basis.IMAGES
        if drawn:
            fresh = {name: fresh[name] for name in ("id", "verdict", "basis", "seeds")}
        record = by_id[judged.claim.id]
        lines = list(_differences(record, fresh))
        found = record.get("steps")
        found = found if isinstance(found, list) else []
        if not drawn and len(found) == len(steps):
            for one, step in zip(found, steps, strict=True):
                lines += _differences(one if isinstance(one, dict) else {}, step)
        elif len(found) != len(steps):
            lines.append(f"has {len(found)} steps, the results give {len(steps)}")
        if lines:
            yield f"claim {judged.claim.id}: {', '.join(lines)}"


def _table_lines(markdown: str) -> list[str]:
    """Return the rows of all tables, however wide their columns are."""
    return [joined_lines(line) for line in markdown.splitlines() if line.startswith("|")]


def _names(records: list[Any]) -> list[tuple[Any, ...]]:
    """Return the names of the cells in these records, which may be malformed."""
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
    return math.isclose(one, other, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
