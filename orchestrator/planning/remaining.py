"""What it would take to settle the cells that are not: runs, seeds, GPU-hours."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from statistics import fmean

from aol.config import TrainConfig, from_dict
from orchestrator.analysis.report import Report
from orchestrator.analysis.tables import UNFINISHED, Cell, runs_of
from orchestrator.analysis.verdicts import CellVerdict, Verdict
from orchestrator.planning.plan import usable_checkpoints
from orchestrator.planning.resources import cost
from orchestrator.spec.experiment import RunSpec
from orchestrator.spec.schema import Prices
from orchestrator.store import Store, StoredRun

TIMED_EPOCHS = 5  # the newest ones; the first of an invocation are slower
OPEN = (Verdict.UNDERPOWERED, Verdict.PARTIAL, Verdict.MISSING)


@dataclass(frozen=True)
class Training:
    """A seed of a run that is not trained to its end: the epochs left, and their GPU-hours."""

    replicate: int
    epochs: int
    hours: float


@dataclass(frozen=True)
class RunNeeds:
    """A run with cells that are not settled, and the seeds to train next, in this order.

    There are as many as the most demanding of its cells that can be settled asks for.
    """

    run: RunSpec
    cells: tuple[CellVerdict, ...]
    trainings: tuple[Training, ...]
    timed: bool  # whether epochs like this run's were timed on a GPU

    def hours(self, seeds: int | None = None) -> float:
        """GPU-hours of the first so many seeds, or of all."""
        return sum(one.hours for one in self.trainings[:seeds])

    def settled_by(self, seeds: int) -> tuple[CellVerdict, ...]:
        """The cells that so many further seeds would settle."""
        return tuple(one for one in self.cells if (one.further_seeds or seeds + 1) <= seeds)

    @property
    def levels(self) -> list[int]:
        """The numbers of seeds at which further cells are settled."""
        return sorted({one.further_seeds for one in self.cells if one.further_seeds})


@dataclass(frozen=True)
class RemainingWork:
    """What a report lacks. `flop` are the floating-point operations of all of it."""

    profile: str
    note: str  # the profile's
    runs: tuple[RunNeeds, ...]
    cells: int  # of the report, settled or not
    flop: float
    prices: Prices

    @cached_property
    def hours(self) -> float:
        """GPU-hours of everything that would settle a cell."""
        return sum(need.hours() for need in self.runs)

    @property
    def timed(self) -> bool:
        """Whether all of these hours are from timed epochs."""
        return all(need.timed for need in self.runs)


def find_remaining_work(
    report: Report, store: Store, table: str | None = None, *, only: Collection[int] | None = None
) -> RemainingWork:
    """What would settle the open cells of a report, or those of one table or of `only` these runs.

    They are judged among all cells of the report, as everywhere. Raises: StoreError.
    """
    experiment = report.experiment
    runs = {run.id: run for run in experiment.runs}
    stored = runs_of(experiment, store)
    paces = gpu_paces(store)
    found = []
    chosen = _chosen(report, table, only)
    for run_id, judged in _open_cells(report, chosen).items():
        seeds = max((one.further_seeds or 0 for one in judged), default=0)
        run = runs[run_id]
        pace = paces.get(_kind(run.train))
        epoch_hours = _epoch_hours(run, pace, experiment.prices)
        trainings = islice(_trainings(run, stored[run_id], epoch_hours), seeds)
        found.append(RunNeeds(run, tuple(judged), tuple(trainings), pace is not None))
    flop = sum(
        cost(need.run).flop * training.epochs / need.run.train.epochs
        for need in found
        for training in need.trainings
    )
    return RemainingWork(
        experiment.profile,
        experiment.note,
        tuple(found),
        len(chosen),
        flop,
        experiment.prices,
    )


def _chosen(report: Report, table: str | None, only: Collection[int] | None) -> list[Cell]:
    return [
        cell
        for cell in report.cells
        if table in (None, cell.table) and (only is None or cell.run in only)
    ]


def _open_cells(report: Report, cells: Sequence[Cell]) -> Mapping[int, list[CellVerdict]]:
    """Those of the cells that are not settled, by run ID, in the order of the tables."""
    found: dict[int, list[CellVerdict]] = {}
    for cell in cells:
        judged = report.judged[cell]
        if judged.verdict in OPEN:
            found.setdefault(cell.run, []).append(judged)
    return found


def _trainings(run: RunSpec, stored: Sequence[StoredRun], epoch_hours: float) -> Iterable[Training]:
    """The run's seeds that are not trained to their end, without end themselves."""
    known = {other.seed: other for other in stored}
    for replicate in count():
        seed = run.replicate_seed(replicate)
        other = known.get(seed)
        if other is None or other.status in UNFINISHED:
            checkpoints = usable_checkpoints(other) if other else ()
            left = run.train.epochs - (checkpoints[0].epoch if checkpoints else 0)
            yield Training(replicate, left, left * epoch_hours)


def _epoch_hours(run: RunSpec, pace: float | None, prices: Prices) -> float:
    seconds = cost(run).flop / run.train.epochs / (prices.tflops * 1e12) if pace is None else pace
    return seconds / 3600 * (run.resources.gpus or 1.0)


def gpu_paces(store: Store) -> dict[tuple[object, ...], float]:
    """Seconds of an epoch as timed on GPUs lately, by what it depends on (`_kind`)."""
    runs = {run.key: run for run in store.runs() if _on_gpu(run)}
    timed = store.latest_metrics(runs, epochs=TIMED_EPOCHS, names=["seconds"])

    def recorded_at(key: str) -> str:
        return store.recorded_at(key, after=max(timed[key]) - 1)[max(timed[key])]

    return {  # the newest of a kind come last
        _kind(from_dict(dict(runs[key].config))): fmean(
            values["seconds"] for values in timed[key].values()
        )
        for key in sorted(timed, key=recorded_at)
    }


def _on_gpu(run: StoredRun) -> bool:
    """Whether it trains on one: processors are `CPU, 2 threads`, or `cpu` if trained elsewhere."""
    return run.device is not None and not run.device.casefold().startswith("cpu")


def _kind(train: TrainConfig) -> tuple[object, ...]:
    """What an epoch's time depends on."""
    return (train.model, train.data, train.batch_size, train.precision, train.eval_every)
