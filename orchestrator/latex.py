r"""The tables in LaTeX, to be \input into a document that uses booktabs."""

import re

from orchestrator.cells import Cell, FilledTable
from orchestrator.numbers import MISSING, shown
from orchestrator.report import Report, paragraph

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    MISSING: "--",
    "ε": r"$\varepsilon$",
    "±": r"$\pm$",
}
ROOT = re.compile(r"√(\d+)")


def latex(report: Report) -> str:
    """A table environment per table of the paper: measured, published in brackets."""
    parts = [
        "% Needs \\usepackage{booktabs}.",
        f"% Profile {report.experiment.profile} of {report.experiment.name}."
        + (f" {report.experiment.note}" if report.experiment.note else ""),
        *(_table(report, filled) for filled in report.tables),
        escaped(paragraph(report)),
    ]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands; √2 becomes a root."""
    signs = "".join(SPECIAL.get(sign, sign) for sign in text)
    return ROOT.sub(r"$\\sqrt{\1}$", signs)


def _table(report: Report, filled: FilledTable) -> str:
    note = report.experiment.note.partition(":")[0]
    titles = [filled.table.header or "Network", *(column.title for column in filled.columns)]
    rows = [
        " & ".join([escaped(row[0].row), *(_cell(cell) for cell in row)]) + r" \\"
        for row in filled.cells
    ]
    caption = filled.table.title + (f" ({note})" if note else "")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}. Percent; published values in brackets.}}",
            rf"\begin{{tabular}}{{l{'r' * len(filled.columns)}}}",
            r"\toprule",
            " & ".join(map(escaped, titles)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _cell(cell: Cell) -> str:
    return escaped(f"{shown(cell.measured)} ({shown(cell.published)})")
