"""The values that claims are about, of finished runs and of the paper, ready to be compared."""

from collections.abc import Sequence
from copy import copy
from enum import StrEnum
from typing import TYPE_CHECKING

from orchestrator.analysis.certificates import measure
from orchestrator.analysis.claims.contrasts import (
    Contrasts,
    ImageContrasts,
    PublishedContrasts,
    SeedContrasts,
)
from orchestrator.analysis.margins import MarginReader, certified
from orchestrator.analysis.tables import EXCLUDED, runs_of
from orchestrator.errors import RecordError
from orchestrator.spec.claims import Claim, radius_of
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.fields import LAYER_NORM, MEASUREMENTS, RADII
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    from orchestrator.analysis.claims.contrasts import Array

HALF_AN_IMAGE = 0.5  # of a share, which is a whole number of images: the least standard deviation


class Basis(StrEnum):
    """The evidence that a verdict is based on."""

    SEEDS = "seeds"  # the spread between them
    IMAGES = "test images"  # a bootstrap over them, with one seed
    ROUNDS = "rounds of a benchmark"  # the spread between them
    VALUES = "values"  # every network satisfies the bound or not: nothing is random


class NotComparableError(Exception):
    """Raised with the reason why a claim's runs cannot be compared."""


class Measurements:
    """The values of the finished runs of a profile after the last epoch, by run ID and seed."""

    def __init__(
        self, experiment: Experiment, store: Store, margins: MarginReader | None = None
    ) -> None:
        self.experiment, self._store = experiment, store
        self._epoch: int | None = None
        self._margins = margins or MarginReader(store)
        self._specs = {run.id: run for run in experiment.runs}
        ended, stored = (Status.DONE, Status.UNSOUND), runs_of(experiment, store)
        self._runs = {
            run_id: [run for run in runs if run.status in ended] for run_id, runs in stored.items()
        }
        self._excluded = {
            run_id: {run.seed: EXCLUDED[run.status] for run in runs if run.status in EXCLUDED}
            for run_id, runs in stored.items()
        }
        self._metric_values = self._read_metrics()
        self._metrics = {column.title: column.metric for column in experiment.columns}

    def at_epoch(self, epoch: int) -> "Measurements":
        """Return the metrics of an earlier epoch, counted from 1.

        Margins and certificates are kept of the last one only.
        """
        earlier = copy(self)
        earlier._epoch = epoch
        earlier._metric_values = earlier._read_metrics()
        return earlier

    @property
    def titles(self) -> tuple[str, ...]:
        """Return the titles of the file's columns."""
        return tuple(self._metrics)

    def values(self, run: int, column: str) -> dict[int, float]:
        """Return the values of a run by seed: percent, or a bound as it is.

        An unsound network has a layer norm and nothing else. Raises: RecordError, StoreError.
        """
        found = {each.seed: self._value(each, column) for each in self._runs[run]}
        return {seed: value for seed, value in found.items() if value is not None}

    def excluded(self, run: int) -> dict[int, str]:
        """Return why seeds of a run do not count: they diverged, or are unsound."""
        return self._excluded[run]

    def dataset(self, run: int) -> str:
        """Return the name of the dataset that a run is tested on."""
        return self._specs[run].train.data.name

    def images(self, run: int) -> int:
        """Return the number of images that a run is tested on."""
        return self._specs[run].train.data.test_images

    def image_values(self, run: int, column: str) -> "Array":
        """Return 100 for every test image of the first seed that counts, 0 for the others.

        Raises: NotComparableError if the column has no value per image, RecordError, StoreError.
        """
        radius = self._radius(column)
        if radius is None or self._epoch is not None:
            raise NotComparableError("It has no value per test image, so it needs a second seed.")
        first = next(each for each in self._runs[run] if each.status is Status.DONE)
        margins = self._margins.load(first)
        if margins is None:
            raise NotComparableError(f"The store has no margins of run {run}.")
        return 100.0 * certified(margins, radius).astype(float)

    def _value(self, run: StoredRun, column: str) -> float | None:
        if (metric := self._metrics.get(column)) is not None:
            value = self._metric_values.get(run.key, {}).get(metric)
            return None if value is None else 100 * value
        if self._epoch is not None:
            return None
        if run.status is Status.UNSOUND and column != LAYER_NORM:
            return None
        for name in MEASUREMENTS:
            if column == name:
                return measure(name, run, self._specs[run.run_id])
        radius = radius_of(column)
        share = None if radius is None else self._margins.share(run, radius)
        return None if share is None else 100 * share

    def _radius(self, column: str) -> float | None:
        """Return the radius of a column, None if it is no share of the test images."""
        metric = self._metrics.get(column)
        return radius_of(column) if metric is None else RADII[metric]

    def _read_metrics(self) -> dict[str, dict[str, float]]:
        """Return the metrics of the epoch by key, none of unsound runs."""
        keys = [run.key for runs in self._runs.values() for run in runs]
        return self._store.final(keys, epoch=self._epoch)


def claimed_radii(experiment: Experiment) -> set[float]:
    """Return the radii of claims at which the tables have no column."""
    titles = [column.title for column in experiment.columns]
    columns = {one for claim in experiment.claims for one in claim.columns_among(titles)}
    radii = map(radius_of, columns.difference(titles))
    return {radius for radius in radii if radius is not None}


class Comparisons:
    """The contrasts of a claim's runs in its columns, all on the same basis."""

    def __init__(self, measured: Measurements, claim: Claim) -> None:
        self.measured, self.titles = measured, measured.titles
        columns = claim.columns_among(self.titles)
        runs = claim.runs_among(run.id for run in measured.experiment.runs)
        found = {run: [measured.values(run, column) for column in columns] for run in runs}
        self.seeds = {run: sorted(set.intersection(*map(set, found[run]))) for run in runs}
        self.unmeasured = tuple(run for run in runs if not self.seeds[run])
        self.excluded = tuple(  # of which no value is compared
            f"run {run} with seed {seed} {reason}"
            for run in runs
            for seed, reason in measured.excluded(run).items()
            if seed not in self.seeds[run]
        )
        self.basis = Basis.SEEDS
        if any(len(seeds) < 2 for seeds in self.seeds.values()):
            self.basis = Basis.IMAGES

    @property
    def tests_trends(self) -> bool:
        """Return whether a trend is tested as a whole, by the ranks of the seeds' values."""
        return self.basis is Basis.SEEDS

    def contrasts(
        self, groups: Sequence[Sequence[int]], column: str, minus: str | None = None
    ) -> list[Contrasts]:
        """Return the contrasts of each group of runs in a column.

        Raises: NotComparableError, RecordError, StoreError.
        """
        if self.basis is Basis.IMAGES:
            return [self._image_contrasts(group, column, minus) for group in groups]
        return [self._seed_contrasts(group, column, minus) for group in groups]

    def _seed_contrasts(
        self, group: Sequence[int], column: str, minus: str | None
    ) -> SeedContrasts:
        shared = sorted(set.intersection(*(set(self.seeds[run]) for run in group)))
        fewest = min(len(self.seeds[run]) for run in group)
        paired = len(shared) > 1
        values = {
            run: self._values(run, column, minus, shared if paired else self.seeds[run][:fewest])
            for run in group
        }
        least = 100 * HALF_AN_IMAGE / min(map(self.measured.images, group))
        return SeedContrasts(values, paired, least)

    def _values(
        self, run: int, column: str, minus: str | None, seeds: Sequence[int]
    ) -> list[float]:
        values = self.measured.values(run, column)
        less = self.measured.values(run, minus) if minus else dict.fromkeys(seeds, 0.0)
        return [values[seed] - less[seed] for seed in seeds]

    def _image_contrasts(
        self, group: Sequence[int], column: str, minus: str | None
    ) -> ImageContrasts:
        if len({self.measured.dataset(run) for run in group}) > 1:
            raise NotComparableError(
                "Its runs have different test images, so they need a second seed."
            )
        values = {}
        for run in group:
            less = self.measured.image_values(run, minus) if minus else 0.0
            values[run] = self.measured.image_values(run, column) - less
        if len({len(each) for each in values.values()}) > 1:
            raise RecordError("the runs have margins of different numbers of test images")
        return ImageContrasts(values)


class PublishedComparisons:
    """The paper's own numbers, compared by its own spread between replicates."""

    tests_trends = False  # with one value per run, a trend is judged by its steps

    def __init__(self, experiment: Experiment) -> None:
        self.prior = experiment.reproduction.prior
        self.titles = tuple(column.title for column in experiment.columns)
        self.values = {
            (row.run, column.title): value
            for table in experiment.tables
            for row in table.rows
            for column, value in zip(experiment.columns, row.published, strict=True)
        }

    def contrasts(
        self, groups: Sequence[Sequence[int]], column: str, minus: str | None = None
    ) -> list[Contrasts]:
        """Return the contrasts of each group. Raises: NotComparableError if a value is missing."""

        def value(run: int) -> float:
            try:
                return self.values[run, column] - (self.values[run, minus] if minus else 0.0)
            except KeyError:
                raise NotComparableError("The paper has no value of it.") from None

        return [
            PublishedContrasts(
                {run: value(run) for run in group}, self.prior.sd, self.prior.freedom
            )
            for group in groups
        ]
