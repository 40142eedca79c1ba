"""The result store with many runs: `python -m benchmarks.store --keep store`.

Fills stores with finished runs of 90 epochs and 11 metrics, like `ingest`: the paper's runs with
five seeds each and the margins of their test images, and others with the same IDs and other
settings. Times are medians within this process, without imports. Prints a page in markdown with a
column per store. 10,000 runs, with ten million metrics, take five minutes.
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

from benchmarks.machine import CLOCKS, describe_machine, load_average, markdown_table, publish
from benchmarks.synthetic import (
    SEEDS,
    finish,
    paper_experiment,
    synthetic_runs,
    vary,
    write_folder,
)
from orchestrator.analysis.report import make_report
from orchestrator.cli.status import print_status
from orchestrator.provenance import Provenance
from orchestrator.reporting.render import render
from orchestrator.sharing.merge import ingest_folders, ingest_run
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store
from orchestrator.store.cells import store_published_cells

Clock = Callable[[], float]
Loads = tuple[float, float]
SIZES = [100, 10_000]
METRICS = 11
FOLDERS = 50
REPEATS = 9
CONDITIONS = {  # of queries on v_final, by description
    "one run ID": "run_id = 0",
    "the paper's profile": "profile = 'paper'",
    "one metric of every run": "metric = 'cra_1'",
}


@dataclass(frozen=True)
class Measurement:
    """A row of the table: a time in seconds, or the number of metrics written per second."""

    name: str
    value: float
    target: float | None = None
    per_second: bool = False

    @property
    def formatted_value(self) -> str:
        """Return the value with its unit."""
        return f"{self.value:,.0f} per second" if self.per_second else f"{1e3 * self.value:,.1f} ms"

    @property
    def formatted_target(self) -> str:
        """Return the target with its unit."""
        if self.target is None:
            return "–"
        return f"≥ {self.target:,.0f}" if self.per_second else f"≤ {1e3 * self.target:,.0f} ms"


def fill(store: Store, runs: int, experiment: Experiment, clock: Clock) -> Measurement:
    """Fill an empty store with finished runs; measure the metrics per second."""
    seconds = 0.0
    for found in synthetic_runs(runs, experiment):
        started = clock()
        ingest_run(found, store)
        seconds += clock() - started
    rows = runs * experiment.runs[0].train.epochs * METRICS
    return Measurement("metrics written by `ingest`", rows / seconds, 50_000, per_second=True)


def measure_reads(store: Store, experiment: Experiment, clock: Clock) -> Iterator[Measurement]:
    """Measure the commands and methods that read."""
    seconds = partial(median_seconds, clock)
    yield Measurement(
        "`report`: the paper's tables with their verdicts",
        seconds(lambda: render(make_report(experiment, store), "md")),
        1.0,
    )
    yield Measurement("`status`", seconds(lambda: status_output(store)), 0.3)
    yield Measurement(
        "`status --json`, every run", seconds(lambda: status_output(store, as_json=True))
    )
    for name, condition in CONDITIONS.items():
        sql = f"SELECT * FROM v_final WHERE {condition}"  # noqa: S608 - constants
        yield Measurement(f"`query` on v_final, {name}", seconds(lambda sql=sql: store.query(sql)))  # type: ignore[misc]
    store_published_cells(experiment, store)
    cells = "SELECT * FROM v_cells"
    yield Measurement("`query` on v_cells, all of it", seconds(lambda: store.query(cells)))
    keys = [run.key for run in experiment.runs]
    yield Measurement("the paper's fourteen runs", seconds(lambda: store.runs(keys)))
    yield Measurement("every metric of a run", seconds(lambda: store.metrics(keys[0])))


def measure_writes(
    store: Store, experiment: Experiment, folder: Path, clock: Clock
) -> Iterator[Measurement]:
    """Measure the writes of `ingest` and of training."""
    run = experiment.runs[0]
    images = run.train.data.test_images
    fresh = [finish(vary(run, 10**6 + n), n, images=images) for n in range(FOLDERS + 1)]
    first, *folders = [write_folder(found, folder) for found in fresh]
    ingest_folders([first], store)
    started = clock()
    ingest_folders(folders, store)
    rows = FOLDERS * run.train.epochs * METRICS
    yield Measurement(
        "metrics read from folders and written by `ingest`",
        rows / (clock() - started),
        50_000,
        per_second=True,
    )
    training = vary(run, 10**6 + len(fresh))
    store.queue([training])
    store.start(training, Provenance(None, {}, ""))
    numbers = iter(range(1, REPEATS + 2))
    values = fresh[0].epochs[0].values
    yield Measurement(
        "an epoch of a run in training",
        median_seconds(clock, lambda: store.record(training.key, next(numbers), values)),
    )


def status_output(store: Store, *, as_json: bool = False) -> str:
    """Return the output of `status`."""
    with redirect_stdout(io.StringIO()) as out:
        print_status(store, None, as_json=as_json)
    return out.getvalue()


def median_seconds(clock: Clock, work: Callable[[], object]) -> float:
    """Return the median time of the work, after one call that imports everything."""
    work()
    times = []
    for _ in range(REPEATS):
        started = clock()
        work()
        times.append(clock() - started)
        if sum(times) > 10:
            break
    return median(times)


def measure_store(location: str | Path, runs: int, epochs: int, clock: Clock) -> list[Measurement]:
    """Create a store with a number of runs at the location, and measure its column."""
    store, experiment = Store(location), paper_experiment(epochs)
    rows = [fill(store, runs, experiment, clock), *measure_reads(store, experiment, clock)]
    with tempfile.TemporaryDirectory() as folder:
        rows += measure_writes(store, experiment, Path(folder), clock)
    store.close()
    return rows


def page(columns: dict[int, list[Measurement]], epochs: int, clock: str, loads: Loads) -> str:
    """Return the page with the table and the machine, in markdown."""
    sizes = [f"{runs:,} runs, {runs * epochs * METRICS:,} metrics" for runs in columns]
    rows = [
        [row[0].name, *(one.formatted_value for one in row), row[-1].formatted_target]
        for row in zip(*columns.values(), strict=True)
    ]
    return f"""# The result store with many runs

{describe_machine()}, SQLAlchemy {sqlalchemy.__version__}, {datetime.now(UTC):%Y-%m-%d}.
Load {loads[0]:.1f} before and {loads[1]:.1f} after.

Medians of {clock} time within the process, without imports. Every run is finished after {epochs}
epochs. Those of the paper's profile, fourteen with {SEEDS} seeds each, have 10,000 margins.

{markdown_table([["measurement", *sizes, "target"], *rows])}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the stores and publish the page."""
    options = _parser().parse_args(arguments)
    before, columns = load_average(), {}
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            location = options.store or Path(folder) / "store.db"
            columns[runs] = measure_store(location, runs, options.epochs, CLOCKS[options.clock])
    loads = before, load_average()
    publish(page(columns, options.epochs, options.clock, loads), options.keep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store", description=__doc__)
    parser.add_argument(
        "--runs",
        type=int,
        nargs="+",
        default=SIZES,
        help="sizes of the stores; default: %(default)s",
    )
    parser.add_argument("--epochs", type=int, default=90, help="default: %(default)s")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: %(default)s")
    parser.add_argument("--store", help="an empty database; default: temporary SQLite files")
    parser.add_argument("--keep", metavar="NAME", help="write benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    main()
