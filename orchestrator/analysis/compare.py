"""Paired comparison of two runs on the same test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.margins import certified, load_margins
from orchestrator.analysis.tables import finished_run
from orchestrator.analysis.verdicts import SIGNIFICANCE_LEVEL
from orchestrator.errors import RequestError
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.store import Store

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.analysis.margins import Margins

RESAMPLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images at one radius; shares are fractions.

    `only_first` counts the images that are certified for the first network but not for the second.
    `p` is the p-value of McNemar's exact test for equal shares. `interval` is the 95% bootstrap
    interval of the difference, second minus first, over resampled test images.
    """

    radius: float
    first: float
    second: float
    only_first: int
    only_second: int
    p: float
    interval: tuple[float, float]


def compare_runs(
    experiment: Experiment, store: Store, pair: tuple[int, int], replicate: int = 0
) -> dict[str, Comparison]:
    """Return the comparison of two runs by column title. Raises: RequestError, RecordError."""
    if pair[0] == pair[1]:
        raise RequestError(f"run {pair[0]} cannot be compared with itself; name two runs")
    experiment.select(pair, "compare")
    runs = {run.id: run for run in experiment.replicates([replicate]).runs}
    first, second = (runs[run_id] for run_id in pair)
    if first.train.data.name != second.train.data.name:
        names = f"{first.train.data.name} and {second.train.data.name}"
        raise RequestError(f"runs {first.id} and {second.id} have different datasets: {names}")
    margins = [_finished_margins(experiment, store, run) for run in (first, second)]
    comparisons = compare_margins(
        margins[0], margins[1], [column.radius for column in experiment.columns]
    )
    return {
        column.title: comparison
        for column, comparison in zip(experiment.columns, comparisons, strict=True)
    }


def compare_margins(
    first: "Margins", second: "Margins", radii: Sequence[float]
) -> list[Comparison]:
    """Return a paired comparison per radius. Raises: RequestError if the image counts differ."""
    import numpy as np

    if len(first) != len(second):
        raise RequestError(
            f"the runs have margins of {len(first)} and {len(second)} images; only runs on the "
            "same test set can be compared"
        )
    rng = np.random.default_rng(0)  # repeated calls return the same interval
    comparisons = []
    for radius in radii:
        a, b = certified(first, radius), certified(second, radius)
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        comparisons.append(
            Comparison(
                radius,
                float(a.mean()),
                float(b.mean()),
                only_first,
                only_second,
                _mcnemar(only_first, only_second),
                _bootstrap_interval(only_first, only_second, len(a), rng),
            )
        )
    return comparisons


def _finished_margins(experiment: Experiment, store: Store, run: RunSpec) -> "Margins":
    """Return the margins of a finished run. Raises: RequestError, RecordError."""
    stored = finished_run(experiment, store, run)
    margins = load_margins(store, stored)
    if margins is None:
        raise RequestError(
            f"run {run.id}: the store has no margins of {stored.key}; train it again with "
            f"`run --rerun {run.id}`"
        )
    return margins


def _mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test: a two-sided binomial test at 1/2."""
    from scipy.special import bdtr

    tail = float(bdtr(min(only_first, only_second), only_first + only_second, 0.5))
    return min(1.0, 2 * tail)


def _bootstrap_interval(
    only_first: int, only_second: int, images: int, rng: "np.random.Generator"
) -> tuple[float, float]:
    """Return the percentile interval of the difference.

    Resampling images with replacement is a multinomial draw of the discordant counts.
    """
    import numpy as np

    probabilities = np.array([only_first, only_second, images - only_first - only_second]) / images
    counts = rng.multinomial(images, probabilities, RESAMPLES)
    differences = (counts[:, 1] - counts[:, 0]) / images
    low, high = np.quantile(differences, [SIGNIFICANCE_LEVEL / 2, 1 - SIGNIFICANCE_LEVEL / 2])
    return float(low), float(high)
