"""The work that would resolve the undecided cells: runs, seeds and GPU-hours."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice

from aol.config import TrainConfig, from_dict
from orchestrator.analysis.claims import ClaimVerdict, JudgedClaim
from orchestrator.analysis.report import Report
from orchestrator.analysis.tables import UNFINISHED, Cell, runs_of
from orchestrator.analysis.timing import epochs_to_read, mean_seconds
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.planning.plan import usable_checkpoints
from orchestrator.planning.resources import cost
from orchestrator.spec.experiment import RunSpec
from orchestrator.spec.schema import Prices
from orchestrator.store import Status, Store, StoredRun
from orchestrator.store.records import DAMAGED

UNRESOLVED = (Verdict.UNDERPOWERED, Verdict.PARTIAL, Verdict.MISSING)


@dataclass(frozen=True)
class Training:
    """An unfinished seed of a run: its remaining epochs and their GPU-hours."""

    replicate: int
    epochs: int
    hours: float


@dataclass(frozen=True)
class RunNeeds:
    """A run with unresolved cells and the seeds to train next, in this order.

    There are as many seeds as would resolve all of its cells that seeds can resolve.
    """

    run: RunSpec
    cells: tuple[CellVerdict, ...]
    trainings: tuple[Training, ...]
    timed: bool  # the hours are estimated from epochs that were timed on a GPU

    def hours(self, seeds: int | None = None) -> float:
        """Return the GPU-hours of the first `seeds` trainings, or of all."""
        return sum(training.hours for training in self.trainings[:seeds])

    def resolved_by(self, seeds: int) -> tuple[CellVerdict, ...]:
        """Return the cells that this number of further seeds would resolve."""
        return tuple(cell for cell in self.cells if (cell.further_seeds or seeds + 1) <= seeds)

    @property
    def seed_counts(self) -> list[int]:
        """Return the numbers of further seeds that resolve another cell, ascending."""
        return sorted({cell.further_seeds for cell in self.cells if cell.further_seeds})


@dataclass(frozen=True)
class ClaimNeeds:
    """A claim that is not decided and the trainings that would decide it; maybe none would.

    `timed` says whether their hours are estimated from epochs of equal settings in the store, and
    `on_cpu` whether such an epoch ran on a CPU, so that the hours have no price.
    """

    judged: JudgedClaim
    trainings: tuple[tuple[RunSpec, Training], ...]
    timed: bool
    on_cpu: bool

    @property
    def hours(self) -> float:
        """Return the hours of all trainings, one after another."""
        return sum(training.hours for _, training in self.trainings)


@dataclass(frozen=True)
class RemainingWork:
    """All work that would resolve the cells of a report; `flop` is its floating-point operations.

    `cells` counts the cells that were considered, resolved or not.
    """

    profile: str
    note: str  # of the profile
    runs: tuple[RunNeeds, ...]
    cells: int
    flop: float
    prices: Prices

    @cached_property
    def hours(self) -> float:
        """Return the GPU-hours of all runs."""
        return sum(run.hours() for run in self.runs)

    @property
    def timed(self) -> bool:
        """Return whether the hours of all runs are estimated from timed epochs."""
        return all(run.timed for run in self.runs)


def find_remaining_work(
    report: Report, store: Store, table: str | None = None, *, only: Collection[int] | None = None
) -> RemainingWork:
    """Return the work for a report, for one of its tables, or for the runs in `only`.

    Verdicts are always those of the whole report. Raises: StoreError.
    """
    experiment = report.experiment
    specs = {run.id: run for run in experiment.runs}
    stored = runs_of(experiment, store)
    timed = epoch_seconds(store, on_gpu=True)
    cells = [
        cell
        for cell in report.cells
        if experiment.comparable
        and table in (None, cell.table)
        and (only is None or cell.run in only)
    ]
    needs = []
    for run_id, verdicts in _unresolved_by_run(report, cells).items():
        run = specs[run_id]
        seeds = max((verdict.further_seeds or 0 for verdict in verdicts), default=0)
        seconds = timed.get(_timing_key(run.train))
        epoch_hours = _epoch_hours(run, seconds, experiment.prices)
        trainings = islice(_unfinished_seeds(run, stored[run_id], epoch_hours), seeds)
        needs.append(RunNeeds(run, tuple(verdicts), tuple(trainings), seconds is not None))
    flop = sum(
        cost(one.run).flop * training.epochs / one.run.train.epochs
        for one in needs
        for training in one.trainings
    )
    return RemainingWork(
        experiment.profile, experiment.note, tuple(needs), len(cells), flop, experiment.prices
    )


def claim_needs(report: Report, store: Store) -> list[ClaimNeeds]:
    """Return the trainings that would decide each claim that is not decided. Raises: StoreError."""
    experiment = report.experiment
    specs = {run.id: run for run in experiment.runs}
    stored = runs_of(experiment, store)
    on_gpus = epoch_seconds(store, on_gpu=True)
    timed = epoch_seconds(store, on_gpu=False) | on_gpus

    def next_seeds(run_id: int, seeds: int) -> list[tuple[RunSpec, Training]]:
        run = specs[run_id]
        hours = _epoch_hours(run, timed.get(_timing_key(run.train)), experiment.prices)
        found = islice(_unfinished_seeds(run, stored[run_id], hours), seeds)
        return [(run, training) for training in found]

    needs = []
    for judged in report.claims:
        if judged.verdict not in (ClaimVerdict.UNDECIDED, ClaimVerdict.NOT_MEASURED):
            continue
        runs = judged.unmeasured or judged.claim.runs_among(specs)
        if not judged.unmeasured and not judged.judged_by_seeds:  # those with one seed need another
            done = {id_: sum(run.status is Status.DONE for run in stored[id_]) for id_ in runs}
            runs = tuple(id_ for id_ in runs if done[id_] < 2)
        trainings = [one for run in runs for one in next_seeds(run, judged.seeds_to_train)]
        keys = {_timing_key(run.train) for run, _ in trainings}
        needs.append(
            ClaimNeeds(
                judged,
                tuple(trainings),
                timed=keys <= timed.keys(),
                on_cpu=bool(keys & timed.keys() - on_gpus.keys()),
            )
        )
    return needs


def epoch_seconds(store: Store, *, on_gpu: bool) -> dict[tuple[object, ...], float]:
    """Return the seconds of recent epochs on GPUs or CPUs, by the settings that determine them.

    Of runs with equal settings, it is the mean over the latest epochs of the most recent one.
    """
    runs, configs = {}, {}
    for run in store.runs():
        if run.device and _trained_on_gpu(run) == on_gpu:
            with suppress(*DAMAGED):
                configs[run.digest] = from_dict(dict(run.config))
                runs[run.key] = run
    recorded_at = store.last_recorded_at(runs)
    newest = {
        _timing_key(configs[runs[key].digest]): runs[key]
        for key in sorted(recorded_at, key=lambda key: recorded_at[key])
    }
    cycles = {run.key: configs[run.digest].eval_every for run in newest.values()}
    timed = store.latest_metrics(cycles, epochs=epochs_to_read(cycles.values()), names=["seconds"])
    return {
        settings: mean_seconds(
            {epoch: values["seconds"] for epoch, values in timed[run.key].items()},
            cycles[run.key],
            run.epochs,
        )
        for settings, run in newest.items()
        if run.key in timed
    }


def _unresolved_by_run(report: Report, cells: Sequence[Cell]) -> Mapping[int, list[CellVerdict]]:
    """Return the unresolved cells by run ID, in the order of the tables."""
    by_run: dict[int, list[CellVerdict]] = {}
    for cell in cells:
        verdict = report.verdicts[cell]
        if verdict.verdict in UNRESOLVED:
            by_run.setdefault(cell.run, []).append(verdict)
    return by_run


def _unfinished_seeds(
    run: RunSpec, stored: Sequence[StoredRun], epoch_hours: float
) -> Iterator[Training]:
    """Yield the unfinished seeds of a run, without end."""
    by_seed = {replicate.seed: replicate for replicate in stored}
    for number in count():
        replicate = by_seed.get(run.replicate_seed(number))
        if replicate is None or replicate.status in UNFINISHED:
            checkpoints = usable_checkpoints(replicate) if replicate else ()
            epochs = run.train.epochs - (checkpoints[0].epoch if checkpoints else 0)
            yield Training(number, epochs, epochs * epoch_hours)


def _epoch_hours(run: RunSpec, seconds: float | None, prices: Prices) -> float:
    """Return the GPU-hours of an epoch: as timed, or else at the rate that the prices assume."""
    if seconds is None:
        seconds = cost(run).flop / run.train.epochs / (prices.tflops * 1e12)
    return seconds / 3600 * (run.resources.gpus or 1.0)


def _trained_on_gpu(run: StoredRun) -> bool:
    # CPUs are stored as `CPU, 2 threads`, or as `cpu` by `python -m aol`
    return run.device is not None and not run.device.casefold().startswith("cpu")


def _timing_key(train: TrainConfig) -> tuple[object, ...]:
    """Return the settings that determine the time of an epoch."""
    return (train.model, train.data, train.batch_size, train.precision, train.eval_every)
