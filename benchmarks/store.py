"""How long the result store takes on many runs: `python -m benchmarks.store --keep store`.

Makes stores of finished runs with 90 epochs of 11 metrics, in the way that `ingest` writes them:
the paper's runs with five seeds each and the margins of their test images, the others with the
same IDs and other settings. Times are of this process, without imports, and medians. Prints a
table in markdown, a column per store; five minutes for the ten million metrics of 10,000 runs.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import sqlalchemy

from benchmarks.machine import CLOCKS, load, machine, table
from benchmarks.made_runs import SEEDS, made_runs, other, paper, trained, write_folder
from orchestrator.analysis.report import make_report
from orchestrator.analysis.tables import note_cells
from orchestrator.cli.status import print_status
from orchestrator.provenance import Provenance
from orchestrator.reporting.render import render
from orchestrator.sharing.merge import ingest_folders, ingest_run
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store

Clock = Callable[[], float]
Loads = tuple[float, float]
RESULTS = Path(__file__).parent / "results"
SIZES = [100, 10_000]
METRICS = 11
FOLDERS = 50
REPEATS = 9
VIEW = {  # in words of v_final's columns
    "one run ID": "run_id = 0",
    "the paper's profile": "profile = 'paper'",
    "one metric of every run": "metric = 'cra_1'",
}


@dataclass(frozen=True)
class Measured:
    """A line of the table: a time in seconds, or how many metrics a second were written."""

    what: str
    value: float
    target: float | None = None
    per_second: bool = False

    @property
    def shown(self) -> str:
        """The value with its unit."""
        return f"{self.value:,.0f} a second" if self.per_second else f"{1e3 * self.value:,.1f} ms"

    @property
    def aim(self) -> str:
        """The target with its unit."""
        if self.target is None:
            return "–"
        return f"≥ {self.target:,.0f}" if self.per_second else f"≤ {1e3 * self.target:,.0f} ms"


def build(store: Store, runs: int, experiment: Experiment, clock: Clock) -> Measured:
    """Fill an empty store with finished runs; how many metrics a second it took."""
    writing, made = 0.0, made_runs(runs, experiment)
    for found in made:
        started = clock()
        ingest_run(found, store)
        writing += clock() - started
    rows = runs * experiment.runs[0].train.epochs * METRICS
    return Measured("metrics written as `ingest` does", rows / writing, 50_000, per_second=True)


def reading(store: Store, experiment: Experiment, clock: Clock) -> Iterator[Measured]:
    """What people wait for."""
    seconds = partial(median_seconds, clock)
    yield Measured(
        "`report`: the paper's tables with their verdicts",
        seconds(lambda: render(make_report(experiment, store), "md")),
        1.0,
    )
    yield Measured("`status`", seconds(lambda: printed(store)), 0.3)
    yield Measured("`status --json`, every run", seconds(lambda: printed(store, as_json=True)))
    for what, condition in VIEW.items():
        sql = f"SELECT * FROM v_final WHERE {condition}"  # noqa: S608 - of our own words
        yield Measured(f"`query` on v_final, {what}", seconds(lambda sql=sql: store.query(sql)))  # type: ignore[misc]
    note_cells(experiment, store)
    cells = "SELECT * FROM v_cells"
    yield Measured("`query` on v_cells, all of it", seconds(lambda: store.query(cells)))
    keys = [run.key for run in experiment.runs]
    yield Measured("the paper's fourteen runs", seconds(lambda: store.runs(keys)))
    yield Measured("every metric of a run", seconds(lambda: store.metrics(keys[0])))


def writing(store: Store, experiment: Experiment, folder: Path, clock: Clock) -> Iterator[Measured]:
    """What training and `ingest` wait for."""
    run = experiment.runs[0]
    images = run.train.data.test_images
    fresh = [trained(other(run, 10**6 + n), n, images=images) for n in range(FOLDERS + 1)]
    first, *folders = [write_folder(found, folder) for found in fresh]
    ingest_folders([first], store)
    started = clock()
    ingest_folders(folders, store)
    rows = FOLDERS * run.train.epochs * METRICS
    yield Measured(
        "metrics that `ingest` read from folders and wrote",
        rows / (clock() - started),
        50_000,
        per_second=True,
    )
    trains = other(run, 10**6 + len(fresh))
    store.queue([trains])
    store.start(trains, Provenance(None, {}, ""))
    numbers = iter(range(1, REPEATS + 2))
    values = fresh[0].epochs[0].values
    yield Measured(
        "an epoch of a run in training",
        median_seconds(clock, lambda: store.record(trains.key, next(numbers), values)),
    )


def printed(store: Store, *, as_json: bool = False) -> str:
    """What `status` prints."""
    with redirect_stdout(io.StringIO()) as out:
        print_status(store, None, as_json=as_json)
    return out.getvalue()


def median_seconds(clock: Clock, work: Callable[[], object]) -> float:
    """The median time of the work, done once before to have everything imported."""
    work()
    times = []
    for _ in range(REPEATS):
        started = clock()
        work()
        times.append(clock() - started)
        if sum(times) > 10:
            break
    return median(times)


def measured(location: str | Path, runs: int, epochs: int, clock: Clock) -> list[Measured]:
    """The column of a store with so many runs, which is made at the location."""
    store, experiment = Store(location), paper(epochs)
    lines = [build(store, runs, experiment, clock), *reading(store, experiment, clock)]
    with tempfile.TemporaryDirectory() as folder:
        lines += writing(store, experiment, Path(folder), clock)
    store.close()
    return lines


def page(columns: dict[int, list[Measured]], epochs: int, clock: str, loads: Loads) -> str:
    """The table with its machine in markdown."""
    sizes = [f"{runs:,} runs, {runs * epochs * METRICS:,} metrics" for runs in columns]
    rows = [
        [line[0].what, *(one.shown for one in line), line[-1].aim]
        for line in zip(*columns.values(), strict=True)
    ]
    return f"""# The result store on many runs

{machine()}, SQLAlchemy {sqlalchemy.__version__}, {datetime.now(UTC):%Y-%m-%d}.
Load {loads[0]:.1f} before and {loads[1]:.1f} after.

Medians of {clock} time inside the process, without imports. Every run is finished, with {epochs}
epochs; those of the paper's profile, fourteen with {SEEDS} seeds each, have 10,000 margins.

{table([["what", *sizes, "target"], *rows])}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the stores, measure, print, keep."""
    options = _parser().parse_args(arguments)
    before, columns = load(), {}
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            location = options.store or Path(folder) / "store.db"
            columns[runs] = measured(location, runs, options.epochs, CLOCKS[options.clock])
    text = page(columns, options.epochs, options.clock, (before, load()))
    print(text)
    if options.keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.keep}.md").write_text(text, encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument(
        "--runs", type=int, nargs="+", default=SIZES, help="a store each; default: %(default)s"
    )
    parser.add_argument("--epochs", type=int, default=90, help="default: %(default)s")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: %(default)s")
    parser.add_argument("--store", help="an empty database, by default temporary SQLite files")
    parser.add_argument("--keep", metavar="NAME", help="write benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    main()
