"""The figures of the claims: their steps as intervals, and their verdicts over the training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from orchestrator.analysis.claims import Basis, ClaimVerdict, JudgedClaim
from orchestrator.reporting.figures.style import GREY, add_legend, add_note, line_style, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    ClaimVerdict.HOLDS: line_style(2),
    ClaimVerdict.CONTRADICTED: line_style(1),
    ClaimVerdict.UNDECIDED: line_style(5),
    ClaimVerdict.NOT_MEASURED: line_style(6),
}
LINEAR_POINTS = 1.0  # up to so many percentage points the axis is linear, then logarithmic
LABEL_LENGTH = 60  # characters of a claim's text before it is cut


def claims_figure(claims: Sequence[JudgedClaim], note: str) -> "Figure":
    """Return a row per claim: the interval of its weakest step, and its other steps as dots."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 1.6 + 0.42 * len(claims)), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Claims of the paper")
    add_note(figure, note)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR_POINTS)
    handles: dict[ClaimVerdict, object] = {}
    for row, judged in enumerate(claims):
        handles.setdefault(judged.verdict, _draw(axes, row, judged))
    axes.set_yticks(range(len(claims)), [_label(judged) for judged in claims], fontsize=8)
    axes.set_ylim(len(claims) - 0.5, -0.5)
    axes.set_xlabel(f"difference as claimed ({_unit(claims)}); left of 0: the opposite")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1.5 * LINEAR_POINTS), max(high, 1.5 * LINEAR_POINTS))
    entries = [(str(verdict), handles[verdict]) for verdict in ClaimVerdict if verdict in handles]
    add_legend(figure, entries, "line: 95 % interval of the weakest step; dots: the other steps")
    return figure


def claims_by_epoch(
    claims: Sequence[JudgedClaim], by_epoch: Mapping[int, Mapping[str, ClaimVerdict]], note: str
) -> "Figure":
    """Return a row per claim that has verdicts by epoch, with a marker for each of them."""
    from matplotlib.figure import Figure

    known = {claim for verdicts in by_epoch.values() for claim in verdicts}
    rows = [judged for judged in claims if judged.claim.id in known]
    figure = Figure(figsize=(10.0, 1.6 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_title("Verdicts if training had ended after each epoch")
    add_note(figure, note)
    entries = []
    for verdict, style in STYLES.items():
        points = [
            (epoch, row)
            for epoch, verdicts in by_epoch.items()
            for row, judged in enumerate(rows)
            if verdicts.get(judged.claim.id) is verdict
        ]
        if points:
            (artist,) = axes.plot(
                *zip(*points, strict=True), color=style.color, marker=style.marker, linestyle="none"
            )
            entries.append((str(verdict), artist))
    axes.set_yticks(range(len(rows)), [_label(judged) for judged in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("epoch")
    add_legend(figure, entries, "")
    return figure


def _draw(axes: "Axes", row: int, judged: JudgedClaim) -> object:
    """Draw a claim in its row and return the artist for the legend."""
    color, _, marker = STYLES[judged.verdict]
    found, weakest = judged.assessment, judged.weakest
    if found is None or weakest is None or found.basis is Basis.VALUES:
        text = "exact" if found else ""
        axes.annotate(text, (0, row), (6, 0), textcoords="offset points", va="center", fontsize=8)
        (point,) = axes.plot([0], [row], color=color, marker=marker, linestyle="none")
        return point
    axes.plot(
        [step.difference for step in found.steps],
        [row] * len(found.steps),
        color=color,
        marker=".",
        markersize=4,
        linestyle="none",
        alpha=0.6,
    )
    axes.hlines(row, *weakest.interval, color=color, linewidth=2)
    (point,) = axes.plot([weakest.difference], [row], color=color, marker=marker, linestyle="none")
    return point


def _unit(claims: Sequence[JudgedClaim]) -> str:
    costs = [
        judged.claim.id
        for judged in claims
        if judged.assessment and judged.assessment.basis is Basis.ROUNDS
    ]
    return "percentage points" + (f"; {', '.join(costs)}: percent saved" if costs else "")


def _label(judged: JudgedClaim) -> str:
    text = judged.claim.text
    short = text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1].rstrip()}…"
    return plain_text(f"{judged.claim.id}  {short}")
