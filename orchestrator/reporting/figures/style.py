"""A common style of all figures: readable in print and for colour-blind readers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aol.text import joined_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation


class LineStyle(NamedTuple):
    """Matplotlib's properties of a series; dashes and markers distinguish it without colour."""

    color: str
    linestyle: Any
    marker: str


LINE_STYLES = (
    LineStyle("#0072B2", "-", "o"),
    LineStyle("#D55E00", "--", "s"),
    LineStyle("#009E73", "-.", "^"),
    LineStyle("#CC79A7", ":", "D"),
    LineStyle("#56B4E9", (0, (5, 1)), "v"),
    LineStyle("#E69F00", (0, (1, 1)), "P"),
    LineStyle("#000000", (0, (3, 1, 1, 1)), "X"),
)
GREY = "#777777"
SMALL_FONT = 7  # points
CHARACTERS_PER_INCH = 18  # of the small font
MARKER_SIZE = 6.0  # points
# Offsets of a label from its point, in points, the nearest first
LABEL_OFFSETS = [(x, y) for far in (4, 9, 14, 20, 28) for y in (far, -far) for x in (4, -4)]
RC_PARAMS: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "aol",  # equal figures are equal files
}


def plain_text(text: str) -> str:
    """Return text as one line that matplotlib shows as it is: no formula, no hidden label."""
    line = joined_lines(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line


def line_style(index: int) -> LineStyle:
    """Return the style of a series; styles repeat after seven."""
    return LINE_STYLES[index % len(LINE_STYLES)]


def make_panels(title: str, note: str, panels: int = 1) -> tuple["Figure", list["Axes"]]:
    """Return a figure with panels side by side, a title and the profile's note at the top."""
    from matplotlib.figure import Figure

    size = (6.0, 4.8) if panels == 1 else (10.0, 4.6 if panels == 2 else 3.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    axes[(panels - 1) // 2].set_title(plain_text(title))
    add_note(figure, note)
    return figure, axes


def add_note(figure: "Figure", note: str) -> None:
    """Write the profile's note at the top, if there is one."""
    if note:
        figure.suptitle(plain_text(note), fontsize=SMALL_FONT, color=GREY, wrap=True)


def add_legend(figure: "Figure", entries: Sequence[tuple[str, Any]], title: str) -> None:
    """Add a legend below the axes, with as many columns as its labels leave room for.

    Nothing is added without entries.
    """
    if not entries:
        return
    available = int(figure.get_figwidth() * CHARACTERS_PER_INCH)
    widest = max(len(label) for label, _ in entries) + 10  # with the line beside it
    figure.legend(
        [artists for _, artists in entries],
        [plain_text(label) for label, _ in entries],
        loc="outside lower center",
        ncols=max(1, min(len(entries), available // widest)),
        fontsize=SMALL_FONT,
        title=title,
        title_fontsize=SMALL_FONT,
        handlelength=3,
        frameon=False,
    )


def add_labels(figure: "Figure", axes: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Write each label beside its point, inside the axes and clear of markers and other labels.

    Call it last, because it measures the axes as they are. A label overlaps others if no free
    position is left.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    size = MARKER_SIZE * figure.dpi / 72
    occupied = [
        Bbox.from_bounds(x - size / 2, y - size / 2, size, size)
        for line in axes.lines
        for x, y in line.get_transform().transform(line.get_xydata())
    ]
    for text, *point in points:
        for offset in LABEL_OFFSETS:
            label = _annotate(axes, text, point, offset)
            box = label.get_window_extent()
            inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
            free = inside and not any(box.overlaps(other) for other in occupied)
            if free or offset == LABEL_OFFSETS[-1]:
                break
            label.remove()
        occupied.append(box)


def _annotate(
    axes: "Axes", text: str, point: Sequence[float], offset: tuple[int, int]
) -> "Annotation":
    from matplotlib.patheffects import withStroke

    x, y = offset
    return axes.annotate(
        plain_text(text),
        (point[0], point[1]),
        xytext=offset,
        textcoords="offset points",
        ha="left" if x > 0 else "right",
        va="bottom" if y > 0 else "top",
        fontsize=SMALL_FONT,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )
