"""The report in markdown: as the paper prints it, beside its numbers, and with verdicts."""

from collections.abc import Callable, Sequence

from orchestrator.analysis.report import Report, summarize
from orchestrator.analysis.tables import Cell, FilledTable
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.formatting import MISSING, format_percent, format_table

SIGNS = {
    Verdict.REPRODUCED: "✓",
    Verdict.DIFFERS: "✗",
    Verdict.UNDERPOWERED: "?",
    Verdict.PARTIAL: "…",
    Verdict.MISSING: MISSING,
}
PRIOR = "°"  # behind what rests on the prior's spread alone
COMPARED = """\
measured / published (difference; of several seeds also their number and standard deviation, sd)"""
LEGEND = """\
Difference in percentage points with its 95 % interval. ✓ reproduced: within the margin; ✗ differs:
beyond it; ?: not decided, +n: so many further seeds would do, +∞: none would; …: in training;
–: no finished and sound run has a value. °: one seed, whose spread is taken from the prior.
See `docs/verdicts.md`."""


def sign(judged: CellVerdict) -> str:
    """A verdict's sign; an undecided one also says how many seeds would decide it."""
    further = f"+{judged.further_seeds or '∞'}" if judged.verdict is Verdict.UNDERPOWERED else ""
    return SIGNS[judged.verdict] + further


def render_markdown(report: Report) -> str:
    """The whole report."""
    experiment = report.experiment
    lines = [f"# {experiment.name}: results of the profile `{experiment.profile}`", ""]
    if experiment.note:
        lines += [f"> **{experiment.note}**", ""]
    if report.violations:
        lines += ["**Broken, so nothing below can be trusted:**", ""]
        lines += [*(f"- {line}" for line in report.violations), ""]
    lines += [
        f"Source of the published values: {experiment.source}.",
        "",
        "Percent of the test images after the last epoch. CRA ε: certified robust accuracy, the",
        "share of images that no change of L2 norm ε can turn wrong (pixels in [0, 1]). "
        f"{MISSING}: not there yet.",
        "",
    ]
    lines += _section(
        report, "As the paper prints them", "", lambda cell: format_percent(cell.measured)
    )
    lines += _section(report, "Beside the published values", COMPARED, _compared)
    lines += _section(
        report,
        "Verdicts",
        f"{summarize(report)}\n\n{LEGEND}",
        lambda cell: _verdict(report.judged[cell]),
    )
    return "\n".join(lines)


def _section(
    report: Report, title: str, introduction: str, text: Callable[[Cell], str]
) -> list[str]:
    """Every table with a text per cell."""
    lines = [f"## {title}", ""] + ([introduction, ""] if introduction else [])
    for filled in report.tables:
        texts = [[text(cell) for cell in row] for row in filled.cells]
        lines += [f"### {_title(report, filled)}", "", _grid(filled, texts), ""]
    return lines


def _title(report: Report, filled: FilledTable) -> str:
    note = report.experiment.note
    return filled.table.title + (f" — {note.partition(':')[0]}" if note else "")


def _compared(cell: Cell) -> str:
    measured = format_percent(cell.measured)
    if cell.measured is None:
        return f"{measured} / {format_percent(cell.published)}"
    seeds = "" if cell.sd is None else f", {cell.seeds} seeds, sd {cell.sd:.2f}"
    difference = format_percent(cell.difference, signed=True)
    return f"{measured} / {format_percent(cell.published)} ({difference}{seeds})"


def _verdict(judged: CellVerdict) -> str:
    if judged.interval is None or judged.spread is None:
        return sign(judged)
    low, high = (format_percent(end, signed=True) for end in judged.interval)
    prior = PRIOR if judged.spread.from_prior else ""
    difference = format_percent(judged.cell.difference, signed=True)
    return f"{sign(judged)} {difference} [{low}, {high}]{prior}"


def _grid(filled: FilledTable, texts: Sequence[Sequence[str]]) -> str:
    header = filled.table.header
    titles = [header, *(column.title for column in filled.columns), "Run ID"]
    rows = [
        [row.label, *cells, str(row.run)]
        for row, cells in zip(filled.table.rows, texts, strict=True)
    ]
    return "\n\n".join([format_table(rows, titles, left={header}, form="pipe"), *filled.left_out])
