"""How every figure looks: readable in print and for the colour-blind, and nothing hides data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation


class LineStyle(NamedTuple):
    """A colour, and what tells it from the others where there is none."""

    colour: str
    dash: Any
    marker: str


STROKES = (
    LineStyle("#0072B2", "-", "o"),
    LineStyle("#D55E00", "--", "s"),
    LineStyle("#009E73", "-.", "^"),
    LineStyle("#CC79A7", ":", "D"),
    LineStyle("#56B4E9", (0, (5, 1)), "v"),
    LineStyle("#E69F00", (0, (1, 1)), "P"),
    LineStyle("#000000", (0, (3, 1, 1, 1)), "X"),
)
FAINT = "#777777"
SMALL = 7  # points
SIZE = 6.0  # of a sign, in points
LETTERS = 18  # of the small font that fit into an inch
STYLE: Any = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "aol",  # the same figure is the same file
}
# where a label may stand, in points from its point, the nearest first
PLACES = [(x, y) for far in (4, 9, 14, 20, 28) for y in (far, -far) for x in (4, -4)]


def line_style(place: int) -> LineStyle:
    """That of the so-manieth row, column or verdict; after seven they come again."""
    return STROKES[place % len(STROKES)]


def make_panels(title: str, note: str, panels: int = 1) -> tuple["Figure", list["Axes"]]:
    """Panels side by side: the title above the middle or first one, the note above all."""
    from matplotlib.figure import Figure

    size = (6.0, 4.8) if panels == 1 else (10.0, 4.6 if panels == 2 else 3.8)
    figure = Figure(figsize=size, layout="constrained")
    drawn = list(figure.subplots(1, panels, squeeze=False)[0])
    drawn[(panels - 1) // 2].set_title(title)
    if note:
        figure.suptitle(note, fontsize=SMALL, color=FAINT, wrap=True)
    return figure, drawn


def add_legend(figure: "Figure", keys: Sequence[tuple[str, Any]], title: str) -> None:
    """Below the axes, where it covers nothing, in as many columns as its labels leave room for."""
    room = int(figure.get_figwidth() * LETTERS)
    widest = max(len(label) for label, _ in keys) + 10  # with the key
    figure.legend(
        [artists for _, artists in keys],
        [label for label, _ in keys],
        loc="outside lower center",
        ncols=max(1, min(len(keys), room // widest)),
        fontsize=SMALL,
        title=title,
        title_fontsize=SMALL,
        handlelength=3,
        frameon=False,
    )


def add_labels(figure: "Figure", axes: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Write each text beside its point, inside the axes and where no sign and no other text is.

    To be called last: it measures the axes as they are. If all is taken, texts overlap.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    size = SIZE * figure.dpi / 72
    taken = [
        Bbox.from_bounds(x - size / 2, y - size / 2, size, size)
        for line in axes.lines
        for x, y in line.get_transform().transform(line.get_xydata())
    ]
    for text, *point in points:
        for place in PLACES:
            label = _label(axes, text, point, place)
            box = label.get_window_extent()
            inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
            free = inside and not any(box.overlaps(one) for one in taken)
            if free or place == PLACES[-1]:
                break
            label.remove()
        taken.append(box)


def _label(axes: "Axes", text: str, point: Sequence[float], place: tuple[int, int]) -> "Annotation":
    from matplotlib.patheffects import withStroke

    across, up = place
    return axes.annotate(
        text,
        (point[0], point[1]),
        xytext=place,
        textcoords="offset points",
        ha="left" if across > 0 else "right",
        va="bottom" if up > 0 else "top",
        fontsize=SMALL,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )
