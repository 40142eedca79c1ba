"""The report in Markdown: measured values, the published ones beside them, verdicts."""

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from aol.text import joined_lines
from orchestrator.analysis.claims import ClaimVerdict, describe_evidence, summarize_claims
from orchestrator.analysis.report import Report, summarize
from orchestrator.analysis.tables import Cell, FilledTable
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.formatting import MISSING, format_percent, format_table

# Code, emphasis, cells, formulas, tags, links, strikethrough, entities; other uses stay readable
SPECIAL = re.compile(
    r"[`*|$]|\\(?=[!-/:-@\[-`{-~]|$)|<(?=[\w/!?])|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])"
    r"|~(?=~)|(?<=~)~|&(?=#?\w+;)"
)
SYMBOLS = {
    Verdict.REPRODUCED: "✓",
    Verdict.DIFFERS: "✗",
    Verdict.UNDERPOWERED: "?",
    Verdict.PARTIAL: "…",
    Verdict.MISSING: MISSING,
}
CLAIM_SYMBOLS = {
    ClaimVerdict.HOLDS: "✓",
    ClaimVerdict.CONTRADICTED: "✗",
    ClaimVerdict.UNDECIDED: "?",
    ClaimVerdict.NOT_MEASURED: MISSING,
}
CLAIM_LEGEND = """\
Evidence: differences in percentage points with 95 % intervals, each claimed to be positive;
p-values are corrected by Holm's method over all claims. See `docs/claims.md`."""
PRIOR_SYMBOL = "°"  # marks intervals whose standard deviation is the prior alone
EXCLUDED_SYMBOL = "†"  # marks cells with a seed that diverged or is unsound
EXCLUDED_MEANING = "without seeds that diverged or are unsound"
COMPARISON_LEGEND = """\
measured / published (difference; of several seeds also their number and standard deviation, sd)"""
VERDICT_LEGEND = """\
Difference in percentage points with its 95 % interval. ✓ reproduced: within the margin; ✗ differs:
beyond it; ?: not decided, +n: so many further seeds would do, +∞: none would; …: in training;
–: no finished and sound run has a value. °: one seed, whose spread is taken from the prior.
See `docs/verdicts.md`."""
EXCLUDED_LEGEND = f"""\
{EXCLUDED_SYMBOL}: {EXCLUDED_MEANING}, which are named below the table. Such a cell does not
count as reproduced."""


def escape(text: str) -> str:
    """Return text as one line of Markdown that shows it as it is."""
    return SPECIAL.sub(r"\\\g<0>", joined_lines(text))


def pipe_table(
    rows: Iterable[Sequence[str]], headers: Sequence[str], *, left: Collection[str]
) -> str:
    """Return a table; the columns in `left` are left-aligned."""
    cells = [[*map(escape, row)] for row in rows]
    aligned = set(map(escape, left))
    return format_table(cells, [*map(escape, headers)], left=aligned, style="pipe")


def verdict_symbol(judged: CellVerdict) -> str:
    """Return the symbol of a verdict, with the further seeds that an undecided one needs."""
    further = f"+{judged.further_seeds or '∞'}" if judged.verdict is Verdict.UNDERPOWERED else ""
    return SYMBOLS[judged.verdict] + further + (EXCLUDED_SYMBOL if judged.cell.excluded else "")


def render_markdown(report: Report) -> str:
    """Return the whole report."""
    experiment = report.experiment
    lines = [f"# {escape(experiment.name)}: results of the profile `{experiment.profile}`", ""]
    if experiment.note:
        lines += [f"> **{escape(experiment.note)}**", ""]
    if report.violations:
        lines += ["**Violated invariants; do not trust the numbers below:**", ""]
        lines += [*(f"- {escape(line)}" for line in report.violations), ""]
    lines += _claims(report)
    lines += [
        f"Source of the published values: {escape(experiment.source)}.",
        "",
        "Percent of the test images after the last epoch. CRA ε: certified robust accuracy, the",
        "share of images that no change of L2 norm ε can turn wrong (pixels in [0, 1]). "
        f"{MISSING}: not there yet.",
        "",
    ]
    if not experiment.comparable:
        legend = "± standard deviation between seeds" if _with_sd(report) else ""
        lines += _section(report, "Tables", legend, _format_measured)
        return "\n".join(lines)
    lines += _section(
        report, "As the paper prints them", "", lambda cell: format_percent(cell.measured)
    )
    lines += _section(report, "Beside the published values", COMPARISON_LEGEND, _compare_cell)
    lines += _section(
        report,
        "Verdicts",
        "\n\n".join([escape(summarize(report)), *_verdict_legends(report)]),
        lambda cell: _format_verdict(report.verdicts[cell]),
    )
    return "\n".join(lines)


def _verdict_legends(report: Report) -> list[str]:
    excluded = any(cell.excluded for cell in report.cells)
    return [VERDICT_LEGEND, EXCLUDED_LEGEND] if excluded else [VERDICT_LEGEND]


def _claims(report: Report) -> list[str]:
    """Return the lines of the section about claims, none if the file has no claims."""
    if not report.claims:
        return []
    rows = [
        [
            judged.claim.id,
            judged.claim.text,
            f"{CLAIM_SYMBOLS[judged.verdict]} {judged.verdict}",
        ]
        for judged in report.claims
    ]
    headers = ["ID", "Claim", "Verdict"]
    table = pipe_table(rows, headers, left=headers)
    lines = ["## Claims", "", summarize_claims(report.claims), "", table, "", CLAIM_LEGEND, ""]
    for judged in report.claims:
        published = f" The paper's own numbers: {judged.published}." if judged.published else ""
        lines.append(f"- {judged.claim.id}: {escape(describe_evidence(judged) + published)}")
    return [*lines, ""]


def _with_sd(report: Report) -> bool:
    return any(cell.sd is not None for cell in report.cells)


def _format_measured(cell: Cell) -> str:
    sd = "" if cell.sd is None else f" ± {cell.sd:.1f}"
    return format_percent(cell.measured) + sd


def _section(
    report: Report, title: str, introduction: str, format_cell: Callable[[Cell], str]
) -> list[str]:
    """Return the lines of a section with every table."""
    lines = [f"## {title}", ""] + ([introduction, ""] if introduction else [])
    for filled in report.tables:
        texts = [[format_cell(cell) for cell in row] for row in filled.cells]
        lines += [f"### {escape(_title(report, filled))}", "", _table(filled, texts), ""]
    return lines


def _title(report: Report, filled: FilledTable) -> str:
    note = report.experiment.note
    return filled.table.title + (f" — {note.partition(':')[0]}" if note else "")


def _compare_cell(cell: Cell) -> str:
    measured = format_percent(cell.measured)
    if cell.measured is None:
        return f"{measured} / {format_percent(cell.published)}"
    seeds = "" if cell.sd is None else f", {cell.seeds} seeds, sd {cell.sd:.2f}"
    difference = format_percent(cell.difference, signed=True)
    return f"{measured} / {format_percent(cell.published)} ({difference}{seeds})"


def _format_verdict(judged: CellVerdict) -> str:
    if judged.interval is None or judged.spread is None:
        return verdict_symbol(judged)
    low, high = (format_percent(end, signed=True) for end in judged.interval)
    prior = PRIOR_SYMBOL if judged.spread.from_prior else ""
    difference = format_percent(judged.cell.difference, signed=True)
    return f"{verdict_symbol(judged)} {difference} [{low}, {high}]{prior}"


def _table(filled: FilledTable, texts: Sequence[Sequence[str]]) -> str:
    header = filled.table.header
    titles = [column.title for column in filled.columns]
    headers = [header, *titles, *filled.measurements, "Run ID"]
    rows = [
        [row.label, *cells, *map(format_percent, measured), str(row.run)]
        for row, cells, measured in zip(filled.table.rows, texts, filled.measured, strict=True)
    ]
    table = pipe_table(rows, headers, left={header})
    return "\n\n".join([table, *map(escape, filled.excluded)])
