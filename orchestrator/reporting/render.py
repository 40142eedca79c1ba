"""The report as text in every format, and its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from aol.atomic import atomic_path
from orchestrator.analysis.claims import JudgedClaim, claim_record
from orchestrator.analysis.report import Report, as_records, summarize
from orchestrator.analysis.verdicts import Verdict
from orchestrator.errors import OutputError
from orchestrator.formatting import to_json

Format = Literal["md", "csv", "json", "tex"]
SCHEMA = 1  # of the JSON; a change that breaks its readers increases it


def render(report: Report, form: Format) -> str:
    """Return the report as Markdown, LaTeX, CSV or JSON."""
    if form == "md":
        from orchestrator.reporting.markdown import render_markdown

        return render_markdown(report)
    if form == "tex":
        from orchestrator.reporting.latex import render_latex

        return render_latex(report)
    if form == "json":
        return to_json(
            {
                "schema": SCHEMA,
                "experiment": report.experiment.name,
                "profile": report.experiment.profile,
                "note": report.experiment.note,
                "summary": summarize(report),
                "comparable": report.experiment.comparable,
                "claims": [claim_record(judged) for judged in report.claims],
                "verdicts": {str(verdict): report.counts[verdict] for verdict in Verdict},
                "unsound": report.unsound,
                "diverged": report.diverged,
                "broken": list(report.violations),
                "cells": as_records(report),
                "measurements": measurement_records(report),
            }
        )
    import pandas as pd

    claims = map(_claim_row, report.claims)
    frame = pd.DataFrame([*as_records(report), *claims])
    frame.insert(0, "profile", report.experiment.profile)
    frame["note"] = report.experiment.note
    return frame.to_csv(index=False)


def measurement_records(report: Report) -> list[dict[str, Any]]:
    """Return a record per row of the tables with its measurements, none without any."""
    return [
        {"table": filled.table.id, "row": row.label, "run_id": row.run}
        | dict(zip(filled.measurements, measured, strict=True))
        for filled in report.tables
        for row, measured in zip(filled.table.rows, filled.measured, strict=True)
        if measured
    ]


def _claim_row(judged: JudgedClaim) -> dict[str, Any]:
    """Return a claim in the columns of the cells: its difference is that of its weakest step."""
    claim, found, weakest = judged.claim, judged.assessment, judged.weakest
    low, high = weakest.interval if weakest else (None, None)
    return {
        "table": "claims",
        "row": claim.id,
        "column": claim.text,
        "metric": claim.kind,
        "difference": weakest.difference if weakest else None,
        "seeds": found.seeds if found else 0,
        "excluded": ", ".join(judged.excluded) or None,
        "verdict": str(judged.verdict),
        "interval_low": low,
        "interval_high": high,
        "further_seeds": judged.further_seeds,
    }


def write_report(report: Report, folder: Path, form: Format) -> Path:
    """Write the report to `folder/<profile>/tables.<form>`. Raises: OutputError."""
    path = folder / report.experiment.profile / f"tables.{form}"
    return write_text(path, render(report, form))


def write_text(path: Path, text: str) -> Path:
    """Write a file of the report atomically. Raises: OutputError."""
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Raise OutputError with the path if a file cannot be written in the block."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error}; choose another --results"
        ) from error
