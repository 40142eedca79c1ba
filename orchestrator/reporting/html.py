"""The report as a self-contained HTML page with embedded figures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.analysis.claims import (
    ClaimVerdict,
    JudgedClaim,
    describe_evidence,
    describe_step,
)
from orchestrator.analysis.parts import describe_commits
from orchestrator.analysis.report import Report, summarize
from orchestrator.analysis.tables import FilledTable, runs_of
from orchestrator.analysis.verdicts import CellVerdict, Verdict, describe_verdict
from orchestrator.formatting import MISSING, format_percent
from orchestrator.reporting.figures import draw_figures
from orchestrator.reporting.markdown import EXCLUDED_SYMBOL, PRIOR_SYMBOL, SYMBOLS, verdict_symbol
from orchestrator.reporting.render import write_text, writing_to
from orchestrator.store import Status, Store, StoredRun

TEMPLATES = Path(__file__).parent / "templates"
LEGEND = {
    Verdict.REPRODUCED: "within the margin",
    Verdict.DIFFERS: "beyond the margin",
    Verdict.UNDERPOWERED: "undecided; +n: n further seeds would resolve it; +∞: no number would",
    Verdict.PARTIAL: "in training",
    Verdict.MISSING: "no finished and sound run has a value",
}
CLAIM_STYLES = {
    ClaimVerdict.HOLDS: "reproduced",
    ClaimVerdict.CONTRADICTED: "differs",
    ClaimVerdict.UNDECIDED: "underpowered",
    ClaimVerdict.NOT_MEASURED: "missing",
}
FAILURES = (Status.FAILED, Status.DIVERGED, Status.UNSOUND, Status.INTERRUPTED)


@dataclass(frozen=True)
class TableCell:
    """The texts of a table cell on the page."""

    text: str
    published: str
    difference: str
    verdict: Verdict
    symbol: str
    description: str
    spread: str  # standard deviation between seeds, empty with one seed
    sort_key: float  # the measured value, -1 if there is none


@dataclass(frozen=True)
class PageClaim:
    """The texts of a claim on the page."""

    id: str
    text: str
    source: str
    verdict: ClaimVerdict
    style: str  # its class in the page's style sheet
    evidence: str
    published: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure on the page, as a data URI."""

    name: str
    title: str
    uri: str


def write_page(report: Report, store: Store, folder: Path) -> tuple[Path, list[Path]]:
    """Draw the figures and write `report.html` with them; return its path and the PNGs.

    Raises: OutputError.
    """
    with writing_to(folder / "figures"):
        drawn = draw_figures(report, store, folder / "figures")
    return write_text(folder / "report.html", render_page(report, store, drawn)), drawn


def render_page(report: Report, store: Store, figures: Sequence[Path]) -> str:
    """Return the page; beside each PNG of `figures` there must be an SVG of the same name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    stored = [run for runs in runs_of(report.experiment, store).values() for run in runs]
    return environment.get_template("report.html.j2").render(
        report=report,
        experiment=report.experiment,
        summary=summarize(report),
        counts=[(verdict, report.counts[verdict]) for verdict in Verdict],
        claims=[_page_claim(judged) for judged in report.claims],
        cells={cell.name: _table_cell(report.verdicts[cell]) for cell in report.cells},
        legends={filled.table.id: _legend(report, filled) for filled in report.tables},
        figures=[_embed(path) for path in figures],
        runs=stored,
        failures=[run for run in stored if run.status in FAILURES],
        provenance=partial(_provenance, store),
        format_percent=format_percent,
    )


def _table_cell(judged: CellVerdict) -> TableCell:
    cell = judged.cell
    prior = PRIOR_SYMBOL if _from_prior(judged) else ""
    return TableCell(
        format_percent(cell.measured),
        format_percent(cell.published),
        format_percent(cell.difference, signed=True),
        judged.verdict,
        (verdict_symbol(judged) + prior).removeprefix(MISSING),
        describe_verdict(judged),
        "" if cell.sd is None else f"{cell.sd:.1f}",
        -1.0 if cell.measured is None else cell.measured,
    )


def _page_claim(judged: JudgedClaim) -> PageClaim:
    found = judged.assessment
    return PageClaim(
        judged.claim.id,
        judged.claim.text,
        judged.claim.source,
        judged.verdict,
        CLAIM_STYLES[judged.verdict],
        describe_evidence(judged),
        judged.published,
        tuple(describe_step(step, found.basis) for step in found.steps) if found else (),
    )


def _legend(report: Report, filled: FilledTable) -> list[tuple[str, str, str]]:
    """Return verdict, symbol and meaning of each symbol in a table; the prior's has no verdict."""
    judged = [report.verdicts[cell] for row in filled.cells for cell in row]
    verdicts = {one.verdict for one in judged}
    entries = [
        (str(verdict), SYMBOLS[verdict], f"{verdict}: {LEGEND[verdict]}")
        for verdict in Verdict
        if verdict in verdicts
    ]
    if any(map(_from_prior, judged)):
        entries.append(("", PRIOR_SYMBOL, "one seed; its standard deviation is the prior's"))
    if any(one.cell.excluded for one in judged):
        meaning = "without seeds that diverged or are unsound; never reproduced"
        entries.append(("", EXCLUDED_SYMBOL, meaning))
    return entries


def _from_prior(judged: CellVerdict) -> bool:
    return judged.spread is not None and judged.spread.from_prior


def _provenance(store: Store, run: StoredRun) -> list[tuple[str, str]]:
    certificate = run.certificate or {}
    packages = ", ".join(f"{name} {version}" for name, version in (run.packages or {}).items())
    return [
        ("key", run.key),
        ("commit", describe_commits(store.attempts(run.key), run.epoch) or MISSING),
        ("packages", packages),
        ("data", run.data_fingerprint or MISSING),
        ("machine", ", ".join(filter(None, (run.host, run.device))) or MISSING),
        ("trained", f"{run.started_at or MISSING} to {run.finished_at or MISSING}"),
        ("certified in", str(certificate.get("arithmetic", MISSING))),
        ("MLflow", run.mlflow_run_id or MISSING),
    ]


def _embed(path: Path) -> EmbeddedFigure:
    content = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
    title = path.stem.replace("-", " ")
    uri = f"data:image/svg+xml;base64,{content}"
    return EmbeddedFigure(path.stem, title[:1].upper() + title[1:], uri)
