"""Figures of the runs of a table: certified accuracy by radius, training metrics by epoch."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

from orchestrator.analysis.margins import certified_share, load_margins
from orchestrator.analysis.tables import FilledTable
from orchestrator.errors import RecordError
from orchestrator.reporting.figures.style import GREY, add_legend, line_style, make_panels
from orchestrator.store import MetricRange, Status, Store, StoredRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from orchestrator.analysis.margins import Margins

Runs = Mapping[int, Sequence[StoredRun]]  # by run ID, a run per seed

LARGEST_RADIUS = 1.5
RADIUS_STEPS = 151
SEEDS = "lines: mean of the seeds; bands: from the lowest to the highest"  # of both figures
BAND_ALPHA = 0.2
RATE = "learning_rate"
PANELS = (
    ("train_loss", "training loss", 1.0),
    ("accuracy", "standard accuracy (%)", 100.0),
    ("cra_36", "CRA 36/255 (%)", 100.0),
)


def certified_curves(
    filled: FilledTable, runs: Runs, store: Store, note: str, *, published: bool
) -> "Figure":
    """Return the certified accuracy by radius: mean and range of the seeds, published values."""
    import numpy as np

    figure, (axes,) = make_panels(filled.table.title, note)
    printed = [column.radius for column in filled.columns]
    radii = np.union1d(np.linspace(0, LARGEST_RADIUS, RADIUS_STEPS), printed)
    entries = []
    for index, row in enumerate(filled.table.rows):
        color, linestyle, marker = line_style(index)
        artists = []
        if published:
            artists += axes.plot(
                printed,
                row.published,
                linestyle="none",
                color=color,
                marker=marker,
                markerfacecolor="none",
                clip_on=False,
            )
        curves = [
            [100 * certified_share(margins, float(radius)) for radius in radii]
            for margins in _margins(runs[row.run], store)
        ]
        if curves:
            artists += axes.plot(radii, np.mean(curves, axis=0), color=color, linestyle=linestyle)
            low, high = np.min(curves, axis=0), np.max(curves, axis=0)
            axes.fill_between(radii, low, high, color=color, alpha=BAND_ALPHA)
        if artists:
            entries.append((row.label, tuple(artists)))
    axes.set(xlabel="radius ε (L2, pixels in [0, 1])", ylabel="certified robust accuracy (%)")
    axes.set(xlim=(0, LARGEST_RADIUS), ylim=(0, None))
    add_legend(figure, entries, f"{SEEDS}; markers: published" if published else SEEDS)
    return figure


def training_curves(filled: FilledTable, runs: Runs, store: Store, note: str) -> "Figure":
    """Return loss, accuracy and CRA by epoch, with drops of the learning rate.

    The lines are the means of the seeds that have reached an epoch, the bands their ranges.
    """
    figure, panels = make_panels(filled.table.title, note, len(PANELS))
    entries, drops = [], set[float]()
    for index, row in enumerate(filled.table.rows):
        color, linestyle, _ = line_style(index)
        keys = [run.key for run in runs[row.run]]
        ranges = store.metric_ranges(keys, [*(metric for metric, _, _ in PANELS), RATE])
        drops |= _learning_rate_drops(ranges.get(RATE, {}))
        for axes, (metric, _, scale) in zip(panels, PANELS, strict=True):
            epochs = ranges.get(metric, {})
            means = [scale * one.mean for one in epochs.values()]
            (line,) = axes.plot(list(epochs), means, color=color, linestyle=linestyle, linewidth=1)
            if len(keys) > 1:
                low = [scale * one.low for one in epochs.values()]
                high = [scale * one.high for one in epochs.values()]
                axes.fill_between(list(epochs), low, high, color=color, alpha=BAND_ALPHA)
        if keys:
            entries.append((row.label, line))
    for axes, (_, label, _) in zip(panels, PANELS, strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        for drop in sorted(drops):
            axes.axvline(drop, color=GREY, linestyle=":", linewidth=1)
    panels[0].set_yscale("log")
    add_legend(figure, entries, f"{SEEDS}; grey: drops of the learning rate" if drops else SEEDS)
    return figure


def _margins(runs: Sequence[StoredRun], store: Store) -> "Iterator[Margins]":
    """Yield the margins of the finished runs; the report names those that are damaged."""
    for run in runs:
        with suppress(RecordError):
            margins = load_margins(store, run) if run.status is Status.DONE else None
            if margins is not None:
                yield margins


def _learning_rate_drops(rates: Mapping[int, MetricRange]) -> set[float]:
    """Return the midpoints between epochs where the learning rate decreases."""
    return {
        (before + after) / 2
        for (before, rate), (after, next_rate) in pairwise(rates.items())
        if next_rate.low < rate.low
    }
