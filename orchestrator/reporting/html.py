"""The report as one page of HTML that needs nothing else: no network, no files beside it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.analysis.report import Report, summarize
from orchestrator.analysis.tables import FilledTable, runs_of
from orchestrator.analysis.verdicts import CellVerdict, Verdict, describe_verdict
from orchestrator.formatting import MISSING, format_percent
from orchestrator.reporting.figures import draw_figures
from orchestrator.reporting.markdown import PRIOR, SIGNS, sign
from orchestrator.reporting.render import write_text
from orchestrator.store import Status, Store, StoredRun

TEMPLATES = Path(__file__).parent / "templates"
MEANINGS = {
    Verdict.REPRODUCED: "within the margin",
    Verdict.DIFFERS: "beyond the margin",
    Verdict.UNDERPOWERED: "not decided; +n: so many further seeds would do, +∞: none would",
    Verdict.PARTIAL: "in training",
    Verdict.MISSING: "no finished and sound run has a value",
}
FAILED = (Status.FAILED, Status.DIVERGED, Status.UNSOUND, Status.INTERRUPTED)


@dataclass(frozen=True)
class Shown:
    """A cell of a table on the page."""

    text: str
    published: str
    difference: str
    verdict: Verdict
    sign: str
    explained: str
    value: float  # to sort by; -1 where there is none


@dataclass(frozen=True)
class Picture:
    """A figure on the page, as a data URI."""

    name: str
    title: str
    uri: str


def write_page(report: Report, store: Store, folder: Path) -> tuple[Path, list[Path]]:
    """Draw the figures and write `report.html`, which holds them; returns it and their PNGs.

    Raises: OutputError, OSError.
    """
    drawn = draw_figures(report, store, folder / "figures")
    return write_text(folder / "report.html", render_page(report, store, drawn)), drawn


def render_page(report: Report, store: Store, figures: Sequence[Path]) -> str:
    """The whole page; `figures` are PNGs with SVGs of the same name beside them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = [run for runs in runs_of(report.experiment, store).values() for run in runs]
    return environment.get_template("report.html.j2").render(
        report=report,
        experiment=report.experiment,
        summary=summarize(report),
        counts=[(verdict, report.counts[verdict]) for verdict in Verdict],
        shown={cell.name: _shown(report.judged[cell]) for cell in report.cells},
        legends={filled.table.id: _legend(report, filled) for filled in report.tables},
        figures=[_picture(path) for path in figures],
        runs=found,
        failures=[run for run in found if run.status in FAILED],
        provenance=_provenance,
    )


def _shown(judged: CellVerdict) -> Shown:
    cell = judged.cell
    prior = PRIOR if _from_prior(judged) else ""
    return Shown(
        format_percent(cell.measured),
        format_percent(cell.published),
        format_percent(cell.difference, signed=True),
        judged.verdict,
        "" if judged.verdict is Verdict.MISSING else sign(judged) + prior,
        describe_verdict(judged),
        -1.0 if cell.measured is None else cell.measured,
    )


def _legend(report: Report, filled: FilledTable) -> list[tuple[str, str, str]]:
    """The signs that stand in a table: the verdict, if it is of one, the sign and its meaning."""
    found = [report.judged[cell] for row in filled.cells for cell in row]
    verdicts = {judged.verdict for judged in found}
    lines = [
        (str(verdict), SIGNS[verdict], f"{verdict}: {MEANINGS[verdict]}")
        for verdict in Verdict
        if verdict in verdicts
    ]
    if any(map(_from_prior, found)):
        lines.append(("", PRIOR, "one seed, whose spread is taken from the prior"))
    return lines


def _from_prior(judged: CellVerdict) -> bool:
    return judged.spread is not None and judged.spread.from_prior


def _provenance(run: StoredRun) -> list[tuple[str, str]]:
    certificate = run.certificate or {}
    return [
        ("key", run.key),
        ("commit", run.git_commit or MISSING),
        (
            "packages",
            ", ".join(f"{name} {version}" for name, version in (run.packages or {}).items()),
        ),
        ("data", run.data_fingerprint or MISSING),
        ("machine", ", ".join(filter(None, (run.host, run.device))) or MISSING),
        ("trained", f"{run.started_at or MISSING} to {run.finished_at or MISSING}"),
        ("certified in", str(certificate.get("arithmetic", MISSING))),
        ("MLflow", run.mlflow_run_id or MISSING),
    ]


def _picture(path: Path) -> Picture:
    content = base64.b64encode(path.with_suffix(".svg").read_bytes()).decode()
    title = path.stem.replace("-", " ")
    return Picture(path.stem, title[:1].upper() + title[1:], f"data:image/svg+xml;base64,{content}")
