"""What follows from a run's stored margins: certified accuracy at any radius, and comparisons.

A margin is the true class's score minus the best other score. The network is 1-Lipschitz, so no
change of the image of L2 norm r moves it by more than sqrt(2) * r: the image is certified for r
while its margin is larger.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.analysis.tables import finished_run, runs_of
from orchestrator.errors import RecordError, RequestError
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    import numpy as np

    Margins = np.ndarray[tuple[int], np.dtype[np.float32]]

TIE = 1e-6  # margins so near to the boundary may have counted either way
ROUNDING = 1e-9  # of a share, by its arithmetic
RESAMPLES = 10_000
LEVEL = 0.05


def read_margins(stored: bytes) -> "Margins":
    """Margins from a store or a file. Raises: ValueError if bytes are missing."""
    import numpy as np

    return np.frombuffer(stored, "<f4")


def load_margins(store: "Store", run: "StoredRun") -> "Margins | None":
    """The margins that the store has of a run. Raises: RecordError, StoreError."""
    stored = store.margins(run.key)
    if stored is None:
        return None
    try:
        margins = read_margins(stored)
    except ValueError as error:
        raise _damaged(run) from error
    if not margins.size:
        raise _damaged(run)
    return margins


def _damaged(run: "StoredRun") -> RecordError:
    return RecordError(
        f"run {run.run_id}, seed {run.seed}: its margins in the store are damaged; `run --rerun "
        f"{run.run_id}` makes them anew, `merge --replace` takes them from another store"
    )


def certified(margins: "Margins", radius: float) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which images are classified correctly whatever change of L2 norm `radius`; 0 is accuracy."""
    found: np.ndarray[tuple[int], np.dtype[np.bool_]] = margins > math.sqrt(2) * radius
    return found


def certified_share(margins: "Margins", radius: float) -> float:
    """The certified robust accuracy at a radius, as a fraction."""
    return float(certified(margins, radius).mean())


def margins_agree(margins: "Margins", radius: float, value: float) -> bool:
    """Whether a stored metric is what the margins give, ties counted either way."""
    return abs(certified_share(margins, radius) - value) <= tied_share(margins, radius) + ROUNDING


def tied_share(margins: "Margins", radius: float) -> float:
    """The share of images so near to the boundary that they may have counted either way."""
    import numpy as np

    return float(np.mean(np.abs(margins - math.sqrt(2) * radius) < TIE))


@dataclass(frozen=True)
class Comparison:
    """Two networks on the same images at one radius; shares are fractions.

    `only_first` images are certified for the first network and not for the second. `p` is
    McNemar's exact test of equal shares; `interval` holds the difference, second minus first,
    with 95% confidence over test images like these.
    """

    radius: float
    first: float
    second: float
    only_first: int
    only_second: int
    p: float
    interval: tuple[float, float]


def compare(first: "Margins", second: "Margins", radii: Sequence[float]) -> list[Comparison]:
    """Paired comparisons at each radius. Raises: ValueError if the images are not as many."""
    import numpy as np
    from statsmodels.stats.contingency_tables import mcnemar

    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} images are not the same test set")
    rng = np.random.default_rng(0)  # the same interval each time
    found = []
    for radius in radii:
        a, b = certified(first, radius), certified(second, radius)
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        table = [[int((a & b).sum()), only_first], [only_second, int((~a & ~b).sum())]]
        found.append(
            Comparison(
                radius,
                float(a.mean()),
                float(b.mean()),
                only_first,
                only_second,
                float(mcnemar(table, exact=True).pvalue),
                _bootstrap(only_first, only_second, len(a), rng),
            )
        )
    return found


def _bootstrap(
    only_first: int, only_second: int, images: int, rng: "np.random.Generator"
) -> tuple[float, float]:
    """The percentile interval of the difference. A resample of images is a multinomial draw."""
    import numpy as np

    chances = np.array([only_first, only_second, images - only_first - only_second]) / images
    drawn = rng.multinomial(images, chances, RESAMPLES)
    differences = (drawn[:, 1] - drawn[:, 0]) / images
    low, high = np.quantile(differences, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def compare_runs(
    experiment: Experiment, store: Store, pair: tuple[int, int], replicate: int = 0
) -> dict[str, Comparison]:
    """By column, two runs on the same test images.

    Raises: RequestError, RecordError, SpecError, RequestError.
    """
    if pair[0] == pair[1]:
        raise RequestError(f"run {pair[0]} does not differ from itself; name two runs")
    experiment.select(pair, "compare")
    runs = {run.id: run for run in experiment.replicates([replicate]).runs}
    first, second = (runs[run_id] for run_id in pair)
    if first.train.data.name != second.train.data.name:
        names = f"{first.train.data.name}, {second.train.data.name}"
        raise RequestError(f"runs {first.id} and {second.id} have other images: {names}")
    found = [_margins(experiment, store, run) for run in (first, second)]
    radii = [column.radius for column in experiment.columns]
    titles = [column.title for column in experiment.columns]
    try:
        return dict(zip(titles, compare(found[0], found[1], radii), strict=True))
    except ValueError as error:
        raise RequestError(str(error)) from error


def _margins(experiment: Experiment, store: Store, run: RunSpec) -> "Margins":
    """The margins of a finished run. Raises: RequestError, RecordError, RequestError."""
    stored = finished_run(experiment, store, run)
    margins = load_margins(store, stored)
    if margins is None:
        raise RequestError(
            f"run {run.id}: the store has no margins of {stored.key}; `run --rerun {run.id}` makes "
            "them"
        )
    return margins


def without_margins(experiment: Experiment, store: Store) -> list[str]:
    """A line per finished run that no radius can be asked of."""
    return [
        f"run {run.run_id}, seed {run.seed}: left out, the store has no margins of it; `run "
        f"--rerun {run.run_id}` makes them"
        for run in _finished(experiment, store)
        if store.margins(run.key) is None
    ]


def _finished(experiment: Experiment, store: Store) -> list[StoredRun]:
    found = runs_of(experiment, store).values()
    return [run for runs in found for run in runs if run.status is Status.DONE]
