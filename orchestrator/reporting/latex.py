r"""The tables in LaTeX, for \input in a document that uses booktabs."""

import re
from collections.abc import Sequence

from aol.text import joined_lines
from orchestrator.analysis.claims import describe_evidence
from orchestrator.analysis.report import Report, summarize
from orchestrator.analysis.tables import Cell, FilledTable
from orchestrator.formatting import MISSING, format_percent
from orchestrator.reporting.markdown import EXCLUDED_MEANING, EXCLUDED_SYMBOL

MATH_COMMANDS = {"±": "pm", "×": "times", "·": "cdot", "≤": "leq", "≥": "geq", "≈": "approx"}
MATH_COMMANDS |= {"→": "to", "∞": "infty", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta"}
MATH_COMMANDS |= {"ε": "varepsilon", "η": "eta", "λ": "lambda", "μ": "mu", "ρ": "rho", "σ": "sigma"}
MATH_COMMANDS |= {"τ": "tau", "ω": "omega", "†": "dagger"}
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    MISSING: "--",
    "−": "$-$",
    **{character: f"${character}$" for character in "<>|"},  # other glyphs outside math mode
    **{character: rf"$\{name}$" for character, name in MATH_COMMANDS.items()},
}
SQUARE_ROOT = re.compile(r"√(\d+)")


def render_latex(report: Report) -> str:
    """Return a table environment per table of the paper and a summary."""
    parts = [
        "% Needs \\usepackage{booktabs}.",
        _comment(
            f"Profile {report.experiment.profile} of {report.experiment.name}. "
            f"{report.experiment.note}"
        ),
        *(
            _comment(f"Invariant violated, do not trust the numbers below: {line}")
            for line in report.violations
        ),
        *([_claims(report)] if report.claims else []),
        *(_table(report, filled) for filled in report.tables),
        escape(summarize(report)),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: str) -> str:
    """Return text with LaTeX's special characters escaped; √2 becomes a square root."""
    line = joined_lines(text)
    result = "".join(ESCAPES.get(character, character) for character in line)
    if line[:1] in ("[", "*"):  # after the end of a row they would be an option of its command
        result = f"{{}}{result}"
    return SQUARE_ROOT.sub(r"$\\sqrt{\1}$", result).replace("√", r"$\surd$")


def _comment(line: str) -> str:
    return f"% {joined_lines(line)}"


def _claims(report: Report) -> str:
    note = report.experiment.note.partition(":")[0]
    caption = "Claims of the paper" + (f" ({note})" if note else "")
    lines = [
        _line([one.claim.id, one.claim.text, str(one.verdict), describe_evidence(one)])
        for one in report.claims
    ]
    columns = r"lp{0.3\textwidth}lp{0.4\textwidth}"
    heads = ["", "Claim", "Verdict", "Evidence"]
    return _environment(caption, "claims", columns, heads, lines)


def _table(report: Report, filled: FilledTable) -> str:
    note = report.experiment.note.partition(":")[0]
    titles = [filled.table.header or "Network", *(column.title for column in filled.columns)]
    titles += filled.measurements
    with_sd = any(cell.sd is not None for row in filled.cells for cell in row)
    comparable = report.experiment.comparable
    rows = [
        line
        for row, measured in zip(filled.cells, filled.measured, strict=True)
        for line in _row_lines(row, measured, with_sd=with_sd, with_published=comparable)
    ]
    caption = filled.table.title + (f" ({note})" if note else "")
    caption += ". Percent; published values in parentheses." if comparable else ". Percent."
    if with_sd:
        caption += " ±: standard deviation between seeds."
    if filled.excluded:
        caption += f" {EXCLUDED_SYMBOL}: {EXCLUDED_MEANING}."
    columns = f"l{'r' * (len(titles) - 1)}"
    return _environment(caption, filled.table.id, columns, titles, rows, notes=filled.excluded)


def _environment(
    caption: str,
    label: str,
    columns: str,
    titles: Sequence[str],
    lines: Sequence[str],
    *,
    notes: Sequence[str] = (),
) -> str:
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\small",
            r"\setlength{\tabcolsep}{3pt}",  # fits five columns of two numbers on a page
            r"\setlength{\belowcaptionskip}{\abovecaptionskip}",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            _line(titles),
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par {escape(note)}" for note in notes),
            r"\end{table}",
        ]
    )


def _row_lines(
    row: Sequence[Cell],
    measured: Sequence[float | None],
    *,
    with_sd: bool,
    with_published: bool,
) -> list[str]:
    """Return the lines of a row.

    With standard deviations the published values have their own line, or the table is too wide.
    """
    further = [format_percent(value) for value in measured]
    published = [f"({format_percent(cell.published)})" if with_published else "" for cell in row]
    if not with_sd:
        texts = [
            f"{_measured(cell)} {text}".rstrip() for cell, text in zip(row, published, strict=True)
        ]
        return [_line([row[0].row, *texts, *further])]
    texts = [_measured(cell) + ("" if cell.sd is None else f" ± {cell.sd:.1f}") for cell in row]
    lines = [_line([row[0].row, *texts, *further])]
    return [*lines, _line(["", *published, *[""] * len(further)])] if with_published else lines


def _measured(cell: Cell) -> str:
    return format_percent(cell.measured) + (EXCLUDED_SYMBOL if cell.excluded else "")


def _line(texts: Sequence[str]) -> str:
    return " & ".join(map(escape, texts)) + r" \\"
