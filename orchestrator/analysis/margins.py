"""Certified accuracy at any radius, computed from the stored margins of a run.

A margin is the score of the true class minus the best other score. The network is 1-Lipschitz, so
a perturbation of L2 norm r changes the margin by at most sqrt(2) * r: an image is certified at
radius r if its margin is larger than that.
"""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrator.analysis.tables import finished_runs
from orchestrator.errors import RecordError
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store, StoredRun

if TYPE_CHECKING:
    import numpy as np

    Margins = np.ndarray[tuple[int], np.dtype[np.float32]]

TIE = 1e-6  # float error of a margin: so close to the boundary, either outcome is valid
ROUNDING = 1e-9  # float error of a share


class MarginReader:
    """Reads the margins of stored runs, each run's once for everything that needs them.

    It keeps their certified shares at `radii`, but the margins only of the first run of each ID,
    whose images claims compare: those of thousands of runs take gigabytes.
    """

    def __init__(self, store: Store, radii: Iterable[float] = ()) -> None:
        self._store, self._radii = store, tuple(radii)
        self._shares: dict[tuple[str, float], float | None] = {}
        self._first: dict[int, tuple[str, Margins | None]] = {}

    def load(self, run: StoredRun) -> "Margins | None":
        """Return the margins of a run, if it has any. Raises: RecordError, StoreError."""
        key, margins = self._first.get(run.run_id, ("", None))
        if key == run.key:
            return margins
        margins = load_margins(self._store, run)
        self._first.setdefault(run.run_id, (run.key, margins))
        for radius in self._radii:
            self._keep_share(run, margins, radius)
        return margins

    def share(self, run: StoredRun, radius: float) -> float | None:
        """Return a run's certified share at a radius, None without margins.

        Raises: RecordError, StoreError.
        """
        if (run.key, radius) not in self._shares:
            self._keep_share(run, self.load(run), radius)
        return self._shares[run.key, radius]

    def _keep_share(self, run: StoredRun, margins: "Margins | None", radius: float) -> None:
        share = None if margins is None else certified_share(margins, radius)
        self._shares[run.key, radius] = share


def load_margins(store: Store, run: StoredRun) -> "Margins | None":
    """Return the stored margins of a run, if it has any. Raises: RecordError, StoreError."""
    stored = store.margins(run.key)
    if stored is None:
        return None
    try:
        margins = read_margins(stored)
    except ValueError:
        margins = None
    if margins is None or not margins.size:
        raise RecordError(
            f"run {run.run_id}, seed {run.seed}: its margins in the store are damaged; train it "
            f"again with `run --rerun {run.run_id}`, or copy them from another store with "
            "`merge --replace`"
        )
    return margins


def read_margins(stored: bytes) -> "Margins":
    """Return margins from their stored form. Raises: ValueError if bytes are missing."""
    import numpy as np

    return np.frombuffer(stored, "<f4")


def describe_missing_margins(experiment: Experiment, store: Store) -> list[str]:
    """Return a line per finished run without stored margins."""
    finished = finished_runs(experiment, store)
    known = store.keys_with_margins(run.key for run in finished)
    return [
        f"run {run.run_id}, seed {run.seed}: left out, because the store has no margins of it; "
        f"train it again with `run --rerun {run.run_id}`"
        for run in finished
        if run.key not in known
    ]


def certified(margins: "Margins", radius: float) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return which images are certified at the radius; radius 0 means classified correctly."""
    result: np.ndarray[tuple[int], np.dtype[np.bool_]] = margins > math.sqrt(2) * radius
    return result


def certified_share(margins: "Margins", radius: float) -> float:
    """Return the certified robust accuracy at a radius, as a fraction."""
    return float(certified(margins, radius).mean())


def tied_share(margins: "Margins", radius: float) -> float:
    """Return the share of images whose margin equals the boundary up to float error."""
    import numpy as np

    return float(np.mean(np.abs(margins - math.sqrt(2) * radius) < TIE))


def margins_agree(margins: "Margins", radius: float, value: float) -> bool:
    """Return whether a stored metric equals the certified share; ties may count either way."""
    return abs(certified_share(margins, radius) - value) <= tied_share(margins, radius) + ROUNDING
