r"""The tables in LaTeX, to be \input into a document that uses booktabs."""

import re
from collections.abc import Sequence

from orchestrator.analysis.report import Report, summarize
from orchestrator.analysis.tables import Cell, FilledTable
from orchestrator.formatting import MISSING, format_percent

FORMULAS = {"±": "pm", "×": "times", "·": "cdot", "≤": "leq", "≥": "geq", "≈": "approx"}
FORMULAS |= {"→": "to", "∞": "infty", "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta"}
FORMULAS |= {"ε": "varepsilon", "η": "eta", "λ": "lambda", "μ": "mu", "ρ": "rho", "σ": "sigma"}
FORMULAS |= {"τ": "tau", "ω": "omega"}
SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    MISSING: "--",
    "−": "$-$",
    **{sign: f"${sign}$" for sign in "<>|"},  # else LaTeX prints other signs for them
    **{sign: rf"$\{name}$" for sign, name in FORMULAS.items()},
}
ROOT = re.compile(r"√(\d+)")


def render_latex(report: Report) -> str:
    """A table environment per table of the paper: measured, published in brackets."""
    parts = [
        "% Needs \\usepackage{booktabs}.",
        f"% Profile {report.experiment.profile} of {report.experiment.name}."
        + (f" {report.experiment.note}" if report.experiment.note else ""),
        *(
            _comment(f"Broken, so nothing below can be trusted: {line}")
            for line in report.violations
        ),
        *map(_comment, [*report.unsound, *report.diverged]),
        *(_table(report, filled) for filled in report.tables),
        escaped(summarize(report)),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands; √2 becomes a root."""
    signs = "".join(SPECIAL.get(sign, sign) for sign in text)
    return ROOT.sub(r"$\\sqrt{\1}$", signs).replace("√", r"$\surd$")


def _comment(line: str) -> str:
    return f"% {' '.join(line.split())}"


def _table(report: Report, filled: FilledTable) -> str:
    note = report.experiment.note.partition(":")[0]
    titles = [filled.table.header or "Network", *(column.title for column in filled.columns)]
    spread = any(cell.sd is not None for row in filled.cells for cell in row)
    rows = [line for row in filled.cells for line in _lines(row, spread)]
    caption = filled.table.title + (f" ({note})" if note else "")
    caption += ". Percent; published values in brackets."
    if spread:
        caption += " ±: standard deviation between seeds."
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\small",
            r"\setlength{\tabcolsep}{3pt}",  # five columns of two numbers in a page's width
            r"\setlength{\belowcaptionskip}{\abovecaptionskip}",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{tab:{filled.table.id}}}",
            rf"\begin{{tabular}}{{l{'r' * len(filled.columns)}}}",
            r"\toprule",
            _line(titles),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _lines(row: Sequence[Cell], spread: bool) -> list[str]:
    """A row; with a `spread` its published values have a line of their own, else it is too wide."""
    published = [f"({format_percent(cell.published)})" for cell in row]
    if not spread:
        texts = [
            f"{format_percent(cell.measured)} {text}"
            for cell, text in zip(row, published, strict=True)
        ]
        return [_line([row[0].row, *texts])]
    texts = [
        format_percent(cell.measured) + ("" if cell.sd is None else f" ± {cell.sd:.1f}")
        for cell in row
    ]
    return [_line([row[0].row, *texts]), _line(["", *published])]


def _line(texts: Sequence[str]) -> str:
    return " & ".join(map(escaped, texts)) + r" \\"
