"""Figures of a table's runs: what they certify at each radius, and how they were trained."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.analysis.margins import certified_share, load_margins
from orchestrator.analysis.tables import FilledTable
from orchestrator.errors import RecordError
from orchestrator.reporting.figures.style import FAINT, add_legend, line_style, make_panels
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis.margins import Margins

Runs = Mapping[int, Sequence[StoredRun]]  # by run ID, a run per seed

FURTHEST = 1.5  # radius of the curves
STEPS = 151
PANELS = (
    ("train_loss", "training loss", 1.0),
    ("accuracy", "standard accuracy (%)", 100.0),
    ("cra_36", "CRA 36/255 (%)", 100.0),
)


def certified_curves(filled: FilledTable, runs: Runs, store: Store, note: str) -> "Figure":
    """Certified accuracy against the radius: mean and range of the seeds, the paper's points."""
    import numpy as np

    figure, (axes,) = make_panels(filled.table.title, note)
    published = [column.radius for column in filled.columns]
    radii = np.union1d(np.linspace(0, FURTHEST, STEPS), published)
    keys = []
    for place, row in enumerate(filled.table.rows):
        colour, dash, marker = line_style(place)
        key = axes.plot(
            published,
            row.published,
            linestyle="none",
            color=colour,
            marker=marker,
            markerfacecolor="none",
            clip_on=False,
        )
        if margins := list(_margins(runs[row.run], store)):
            curves = [
                [100 * certified_share(one, float(radius)) for radius in radii] for one in margins
            ]
            key += axes.plot(radii, np.mean(curves, axis=0), color=colour, linestyle=dash)
            low, high = np.min(curves, axis=0), np.max(curves, axis=0)
            axes.fill_between(radii, low, high, color=colour, alpha=0.2)
        keys.append((row.label, tuple(key)))
    axes.set(xlabel="radius ε (L2, pixels in [0, 1])", ylabel="certified robust accuracy (%)")
    axes.set(xlim=(0, FURTHEST), ylim=(0, None))
    add_legend(figure, keys, "lines: mean of the seeds, shaded their range; signs: published")
    return figure


def _margins(runs: Sequence[StoredRun], store: Store) -> "Iterator[Margins]":
    """Those of the finished runs that have any; the report says whose are damaged."""
    for run in runs:
        with suppress(RecordError):
            if run.status is Status.DONE and (found := load_margins(store, run)) is not None:
                yield found


def training_curves(filled: FilledTable, runs: Runs, store: Store, note: str) -> "Figure":
    """Loss, accuracy and CRA by epoch, a line per seed; grey where the learning rate drops."""
    figure, panels = make_panels(filled.table.title, note, len(PANELS))
    keys, drops = [], set[float]()
    for place, row in enumerate(filled.table.rows):
        colour, dash, _ = line_style(place)
        for number, run in enumerate(runs[row.run]):
            epochs = store.metrics(run.key)
            drops |= _drops(epochs)
            for axes, (metric, _, scale) in zip(panels, PANELS, strict=True):
                points = [(n, scale * v[metric]) for n, v in sorted(epochs.items()) if metric in v]
                (line,) = axes.plot(
                    [epoch for epoch, _ in points],
                    [value for _, value in points],
                    color=colour,
                    linestyle=dash,
                    linewidth=1,
                )
            if not number:
                keys.append((row.label, line))
    for axes, (_, label, _) in zip(panels, PANELS, strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        for drop in sorted(drops):
            axes.axvline(drop, color=FAINT, linestyle=":", linewidth=1)
    panels[0].set_yscale("log")
    add_legend(figure, keys, "grey: the learning rate drops" if drops else "")
    return figure


def _drops(epochs: Mapping[int, Mapping[str, float]]) -> set[float]:
    """Between which epochs the learning rate becomes smaller."""
    rates = [
        (epoch, values["learning_rate"])
        for epoch, values in sorted(epochs.items())
        if "learning_rate" in values
    ]
    return {
        (before + after) / 2
        for (before, rate), (after, following) in pairwise(rates)
        if following < rate
    }
