"""Many runs in one experiment: `python -m benchmarks.scale --keep scale`.

Takes replicates of the paper's runs through an invocation of `run`, with a trainer that needs no
time, and through the commands that read the store. Prints a page in markdown with the milliseconds
per run at each size, and their ratio to those at the first size. 10,000 runs take some minutes.
"""

import argparse
import base64
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import sqlalchemy
from rich.console import Console

from benchmarks.machine import CLOCKS, describe_machine, load_average, markdown_table, publish
from benchmarks.synthetic import EXPERIMENTS, finish
from orchestrator.analysis.report import make_report
from orchestrator.cli.console import ConsoleRecorder, plan_table
from orchestrator.cli.status import print_status
from orchestrator.driver.recorder import StoreRecorder
from orchestrator.planning.plan import plan
from orchestrator.planning.resources import costs
from orchestrator.planning.unresolved import claim_needs, find_remaining_work
from orchestrator.provenance import Provenance
from orchestrator.reporting.render import render
from orchestrator.scheduling.callback import TrialEvents
from orchestrator.scheduling.control import ControlActor
from orchestrator.scheduling.storage import CheckpointStorage, RunStorage
from orchestrator.sharing.run_folder import RunFolderContents
from orchestrator.signals import StopSignals
from orchestrator.spec.experiment import Experiment, RunSpec
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store

SIZES = [100, 1_000, 10_000]
EPOCHS, IMAGES = 3, 100
ORIGIN = Provenance("0" * 40, {"torch": "2.13.0"}, "")

Clock = Callable[[], float]


def large_experiment(runs: int) -> Experiment:
    """Return so many replicates of the paper's runs, with few epochs and few test images."""
    settings = [f"epochs={EPOCHS}", f"data.test_limit={IMAGES}"]
    experiment = SpecFile(EXPERIMENTS).experiment("paper", settings)
    replicated = experiment.replicates(range(-(-runs // len(experiment.runs))))
    return replace(replicated, runs=replicated.runs[:runs])


def change(experiment: Experiment) -> Experiment:
    """Return the experiment with another setting in every run."""
    return replace(experiment, runs=tuple(map(_change, experiment.runs)))


def _change(run: RunSpec) -> RunSpec:
    return run.model_copy(update={"train": replace(run.train, batch_size=100)})


class Stopwatch:
    """Keeps the seconds of each operation on a number of runs."""

    def __init__(self, clock: Clock, runs: int) -> None:
        self._clock, self._runs = clock, runs
        self.seconds_per_run: dict[str, float] = {}

    @contextmanager
    def __call__(self, operation: str) -> Iterator[None]:
        """Add the time of the block to an operation."""
        started = self._clock()
        yield
        seconds = (self._clock() - started) / self._runs
        self.seconds_per_run[operation] = self.seconds_per_run.get(operation, 0.0) + seconds


def measure(location: str | Path, runs: int, clock: Clock) -> dict[str, float]:
    """Take so many runs through an empty store; return the seconds per run by operation."""
    timed, experiment = Stopwatch(clock, runs), large_experiment(runs)
    whole = experiment.whole
    with closing(Store(location, exclusive=True)) as store:
        with timed("`plan`, nothing stored"):
            planned = plan(experiment, store)
        with timed("the table of the plan"):
            _print_unseen(lambda console: console.print(plan_table(planned, whole.profile)))
        with timed("resources and costs"):
            work = {key: cost.flop for key, cost in costs(experiment.runs).items()}
        with timed("`queue`"):
            store.queue(experiment.runs)
        with timed("`heartbeat`"):
            store.heartbeat()
        train(experiment.runs, work, store, timed)
        with timed("`status`"):
            _print_unseen(lambda _: print_status(store, None))
        with timed("`status --json`"):
            _print_unseen(lambda _: print_status(store, None, as_json=True))
        with timed("`plan`, everything done"):
            plan(experiment, store)
        with timed("`report`"):
            report = make_report(whole, store)
            render(report, "md")
        with timed("`missing`"):
            find_remaining_work(report, store)
            claim_needs(report, store)
        with timed("`plan`, everything changed"):
            changed = plan(change(experiment), store)
        store.queue(item.run for item in changed)
        with timed("`recover`"):
            store.recover()
    return timed.seconds_per_run


def train(
    runs: Sequence[RunSpec], work: Mapping[str, float], store: Store, timed: Stopwatch
) -> None:
    """Send the results of every run through the driver's callbacks, as Tune would."""
    console = Console(file=io.StringIO(), force_terminal=True)
    provenance: dict[str, Provenance] = {run.train.data.name: ORIGIN for run in runs}
    with (
        tempfile.TemporaryDirectory() as folder,
        ConsoleRecorder(console, work, Path(folder)) as progress,
    ):
        events: Any = TrialEvents(
            runs,
            [StoreRecorder(store, provenance, CheckpointStorage(folder).discard), progress],
            control=MagicMock(spec=ControlActor),
            stop=StopSignals(),
            reasons={},
            warn=_refuse,
        )
        trials = [
            SimpleNamespace(
                config={"job": {"key": run.key}}, status="PENDING", run_metadata=SimpleNamespace()
            )
            for run in runs
        ]
        for number, (run, trial) in enumerate(zip(runs, trials, strict=True)):
            storage = RunStorage(f"{folder}/x/{run.key}")
            results = list(_results(finish(run, number, images=IMAGES), storage))
            with timed("driver's loop"):
                events.on_trial_start(0, trials, trial)
                for result in results:
                    events.on_trial_result(0, trials, trial, result)
                    events.on_step_end(0, trials)
        with timed("driver's loop"):
            events.close()


def _results(found: RunFolderContents, storage: RunStorage) -> Iterator[dict[str, Any]]:
    """Yield the results that a worker reports."""
    facts = {"commit": ORIGIN.git_commit, "diff": None, "packages": dict(ORIGIN.packages)}
    environment = facts | {"fingerprints": {"train": "d", "test": "d"}}
    yield {
        "kind": "placed",
        "host": "host",
        "device": "NVIDIA H200",
        "epoch": 0,
        "environment": environment,
    }
    for epoch in found.epochs:
        yield {"kind": "epoch", "epoch": epoch.epoch, "values": epoch.values}
    yield {"kind": "saved", "epoch": EPOCHS, "path": f"{storage.location}/checkpoint_1"}
    margins = base64.b64encode(found.margins or b"").decode()
    certificate = found.end and found.end.certificate
    path = storage.save_result({"margins": margins, "certificate": certificate})
    yield {"kind": "done", "error": None, "path": path}


def _print_unseen(write: Callable[[Console], None]) -> None:
    """Print to the standard output, or to a console of 200 columns, without showing it."""
    with redirect_stdout(io.StringIO()) as out:
        write(Console(file=out, width=200))


def _refuse(text: str) -> None:
    raise AssertionError(text)


def page(columns: Mapping[int, Mapping[str, float]], clock: str, loads: tuple[float, float]) -> str:
    """Return the page with the table and the machine, in markdown."""
    sizes = list(columns)
    rows = [["ms per run", *(f"{runs:,} runs" for runs in sizes), "ratio"]]
    for name in columns[sizes[0]]:
        found = [columns[runs][name] for runs in sizes]
        rows.append([name, *(f"{1e3 * each:.3f}" for each in found), f"{found[-1] / found[0]:.2f}"])
    return f"""# Many runs in one experiment

{describe_machine()}, SQLAlchemy {sqlalchemy.__version__}, {datetime.now(UTC):%Y-%m-%d}.
Load {loads[0]:.1f} before and {loads[1]:.1f} after.

Replicates of the paper's fourteen runs, with {EPOCHS} epochs and {IMAGES} test images. {clock} time
within the process, in milliseconds per run. The ratio is that of the last size to the first.

{markdown_table(rows)}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each size and publish the page."""
    options = _parser().parse_args(arguments)
    before, columns = load_average(), {}
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            location = options.store or Path(folder) / "store.db"
            columns[runs] = measure(location, runs, CLOCKS[options.clock])
    publish(page(columns, options.clock, (before, load_average())), options.keep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--runs", type=int, nargs="+", default=SIZES, help="sizes; default: %(default)s"
    )
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: %(default)s")
    parser.add_argument("--store", help="an empty database; default: temporary SQLite files")
    parser.add_argument("--keep", metavar="NAME", help="write benchmarks/results/NAME.md")
    return parser


if __name__ == "__main__":
    main()
