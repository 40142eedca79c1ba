"""The values that claims are about, of finished runs and of the paper, ready to be compared."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from orchestrator.analysis.certificates import MEASURES
from orchestrator.analysis.claims.contrasts import (
    Contrasts,
    ImageContrasts,
    SeedContrasts,
    SeedSpread,
    pool_spread,
)
from orchestrator.analysis.margins import certified, certified_share, load_margins
from orchestrator.analysis.tables import finished_runs
from orchestrator.spec.claims import Claim, radius_of
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.fields import RADII
from orchestrator.store import Store, StoredRun

if TYPE_CHECKING:
    from orchestrator.analysis.claims.contrasts import Array

HALF_AN_IMAGE = 0.5  # of a share, which is a whole number of images: the least standard deviation


class Basis(StrEnum):
    """The evidence that a verdict is based on."""

    SEEDS = "seeds"  # the spread between them
    IMAGES = "test images"  # a bootstrap over them, with one seed
    ROUNDS = "rounds of a benchmark"  # the spread between them
    VALUES = "values"  # every network satisfies the bound or not: nothing is random


class Measurements:
    """The values of the finished runs of a profile, by run ID and seed.

    They are those of the last epoch. With `epoch`, counted from 1, they are the metrics of that
    one: margins and certificates are kept of the last only.
    """

    def __init__(self, experiment: Experiment, store: Store, epoch: int | None = None) -> None:
        self.experiment, self._store, self._epoch = experiment, store, epoch
        self._runs: dict[int, list[StoredRun]] = {run.id: [] for run in experiment.runs}
        for run in finished_runs(experiment, store):
            self._runs[run.run_id].append(run)
        keys = [run.key for runs in self._runs.values() for run in runs]
        self._metric_values = store.final(keys, epoch=epoch)
        self._metrics = {column.title: column.metric for column in experiment.columns}
        self._margins: dict[str, Any] = {}

    @property
    def titles(self) -> tuple[str, ...]:
        """Return the titles of the file's columns."""
        return tuple(self._metrics)

    def values(self, run: int, column: str) -> dict[int, float]:
        """Return the values of a run by seed: percent, or a bound as it is."""
        found = {each.seed: self._value(each, column) for each in self._runs[run]}
        return {seed: value for seed, value in found.items() if value is not None}

    def image_values(self, run: int, column: str) -> "Array | None":
        """Return 100 for every test image of the first seed that counts, 0 for the others.

        None if there are no margins, or if the column is no share of the images.
        """
        radius = self._radius(column)
        if radius is None or not self._runs[run] or self._epoch is not None:
            return None
        margins = self._load(self._runs[run][0])
        return None if margins is None else 100.0 * certified(margins, radius).astype(float)

    def _value(self, run: StoredRun, column: str) -> float | None:
        if (metric := self._metrics.get(column)) is not None:
            value = self._metric_values.get(run.key, {}).get(metric)
            return None if value is None else 100 * value
        if self._epoch is not None:
            return None
        if column in MEASURES:
            return MEASURES[column](run)
        margins, radius = self._load(run), radius_of(column)
        if margins is None or radius is None:
            return None
        return 100 * certified_share(margins, radius)

    def _radius(self, column: str) -> float | None:
        """Return the radius of a column, None if it is no share of the test images."""
        metric = self._metrics.get(column)
        return radius_of(column) if metric is None else RADII[metric]

    def _load(self, run: StoredRun) -> Any:
        if run.key not in self._margins:
            self._margins[run.key] = load_margins(self._store, run)
        return self._margins[run.key]


class Comparisons:
    """The contrasts of a claim's runs in its columns, all on the same basis."""

    def __init__(self, measured: Measurements, claim: Claim) -> None:
        self.measured, self.titles = measured, measured.titles
        columns = claim.columns_among(self.titles)
        runs = claim.runs_among(run.id for run in measured.experiment.runs)
        found = {run: [measured.values(run, column) for column in columns] for run in runs}
        self.seeds = {run: sorted(set.intersection(*map(set, found[run]))) for run in runs}
        self.unmeasured = tuple(run for run in runs if not self.seeds[run])
        self.basis = Basis.SEEDS
        if any(len(seeds) < 2 for seeds in self.seeds.values()):
            self.basis = Basis.IMAGES

    @property
    def least_seeds(self) -> int:
        """Return the number of seeds that every run has."""
        return min(map(len, self.seeds.values()))

    def contrasts(
        self, groups: Sequence[Sequence[int]], column: str, minus: str | None = None
    ) -> list[Contrasts] | None:
        """Return the contrasts of each group in a column; None if they lack what they need."""
        if self.basis is Basis.IMAGES:
            return self._image_contrasts(groups, column, minus)
        common = [set.intersection(*(set(self.seeds[run]) for run in group)) for group in groups]
        paired = all(len(seeds) > 1 for seeds in common)
        values = []
        for group, shared in zip(groups, common, strict=True):
            least = min(len(self.seeds[run]) for run in group)
            values.append(
                {
                    run: self._values(run, column, minus, sorted(shared))
                    if paired
                    else self._values(run, column, minus, self.seeds[run][:least])
                    for run in group
                }
            )
        images = {run.id: run.train.data.test_images for run in self.measured.experiment.runs}
        least_sd = 100 * HALF_AN_IMAGE / min(images[run] for group in groups for run in group)
        spread = pool_spread(values, paired=paired, least=least_sd)
        return [SeedContrasts(group, spread, len(next(iter(group.values())))) for group in values]

    def _values(
        self, run: int, column: str, minus: str | None, seeds: Sequence[int]
    ) -> list[float]:
        values = self.measured.values(run, column)
        less = self.measured.values(run, minus) if minus else dict.fromkeys(seeds, 0.0)
        return [values[seed] - less[seed] for seed in seeds]

    def _image_contrasts(
        self, groups: Sequence[Sequence[int]], column: str, minus: str | None
    ) -> list[Contrasts] | None:
        contrasts: list[Contrasts] = []
        for group in groups:
            values = {}
            for run in group:
                found = self.measured.image_values(run, column)
                less = self.measured.image_values(run, minus) if minus else 0.0
                if found is None or less is None:
                    return None
                values[run] = found - less
            contrasts.append(ImageContrasts(values))
        return contrasts


class PublishedComparisons:
    """The paper's own numbers, compared by its own spread between replicates."""

    basis = Basis.IMAGES  # one value per run: a trend is judged by its steps

    def __init__(self, experiment: Experiment) -> None:
        prior = experiment.reproduction.prior
        self.spread = SeedSpread(prior.sd, prior.freedom)
        self.titles = tuple(column.title for column in experiment.columns)
        self.values = {
            (row.run, column.title): value
            for table in experiment.tables
            for row in table.rows
            for column, value in zip(experiment.columns, row.published, strict=True)
        }

    def contrasts(
        self, groups: Sequence[Sequence[int]], column: str, minus: str | None = None
    ) -> list[Contrasts] | None:
        """Return the contrasts of each group; None if a value was not published."""
        try:
            return [
                SeedContrasts(
                    {
                        run: [self.values[run, column] - (self.values[run, minus] if minus else 0)]
                        for run in group
                    },
                    self.spread,
                    seeds=1,
                )
                for group in groups
            ]
        except KeyError:
            return None
