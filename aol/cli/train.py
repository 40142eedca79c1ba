"""`python -m aol`: train runs on a machine that has torch and no orchestrator.

The runs come from `python -m orchestrator plan experiments.yaml --json`; `python -m orchestrator
ingest` takes the results into the store.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch

from aol.cli.paths import parse_path
from aol.data.datasets import default_root, describe_fallback
from aol.errors import AOLError
from aol.reading import parse_json, read_limited
from aol.text import printable_lines
from aol.training.records import Outcome, Run, parse_record
from aol.training.run_folder import RunFolder

EXIT_FAILED, EXIT_USAGE, EXIT_CONTINUE = 3, 2, 75  # 75 is EX_TEMPFAIL: call again
EPOCH_TIME_SAFETY = 1.5  # times the longest of the latest epochs, which the next may take


class Deadline:
    """The time by which training must stop; a signal ends it at once."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds
        self.signal: int | None = None

    def must_stop(self, next_s: float) -> bool:
        """Return whether an epoch of `next_s` seconds would not end in time."""
        late = self.end is not None and time.monotonic() + EPOCH_TIME_SAFETY * next_s > self.end
        return late or self.signal is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Stop after the current epoch."""
        self.signal = number


def main(arguments: list[str] | None = None) -> int:
    """Train the runs one after another; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        runs = select_runs(options.config, options.run)
    except (OSError, ValueError) as error:
        problem = f"{options.config}: {error}; is it the output of `plan --json`?"
        print(printable_lines(problem), file=sys.stderr)
        return EXIT_USAGE
    deadline = Deadline(options.until_seconds)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, deadline.on_signal)
    device = torch.device(options.device)
    for name in sorted({run.config.data.name for run in runs}):
        if note := describe_fallback(name, options.data):
            _log(note)
    outcomes = []
    for run in runs:
        if deadline.must_stop(0.0):
            outcomes.append(Outcome.STOPPED)
            continue
        try:
            outcome = RunFolder(options.out / run.key).train(
                run,
                data_root=options.data,
                device=device,
                must_stop=deadline.must_stop,
                save_every_s=options.save_every,
                cuda_graph=not options.eager,
                log=_log,
            )
        except (AOLError, ValueError, OSError) as error:
            print(printable_lines(f"run {run.id}: {error}"), file=sys.stderr)
            return _exit_code(error)
        _log(f"run {run.id} {run.name}: {outcome}")
        outcomes.append(outcome)
    if deadline.signal:
        return 128 + deadline.signal
    if {Outcome.DIVERGED, Outcome.UNSOUND} & set(outcomes):
        return EXIT_FAILED
    return EXIT_CONTINUE if Outcome.STOPPED in outcomes else 0


def _exit_code(error: Exception) -> int:
    if isinstance(error, OSError):
        return AOLError.exit_code
    return error.exit_code if isinstance(error, AOLError) else EXIT_USAGE


def select_runs(config: Path, ids: list[int] | None) -> list[Run]:
    """Return the runs of a plan with these IDs in their order, or all of them.

    Raises: OSError, ValueError.
    """
    rows = parse_json(read_limited(config))
    if not isinstance(rows, list):
        raise ValueError(f"must be a list of runs, got {type(rows).__name__}")
    runs = [parse_record(Run, row, f"row {number}") for number, row in enumerate(rows, start=1)]
    if ids is None:
        return runs
    known = {run.id for run in runs}
    if unknown := sorted(set(ids) - known):
        raise ValueError(f"there is no run {unknown[0]}; the runs are {sorted(known)}")
    return sorted((run for run in runs if run.id in ids), key=lambda run: ids.index(run.id))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aol",
        description="Train runs without the orchestrator.",
        epilog="python -m aol certify --help: certified radii of single images",
    )
    add = parser.add_argument
    add("--config", type=parse_path, required=True, help="the output of `orchestrator plan --json`")
    add("--run", type=_ids, help="IDs of the runs, in this order, like 0,24,20 (default: all)")
    add("--data", type=parse_path, default=default_root(), help="data root (default: %(default)s)")
    add(
        "--out",
        type=parse_path,
        required=True,
        help="folder of the results; each run gets a folder",
    )
    add("--until-seconds", type=float, help="save and stop before this many seconds have passed")
    add("--save-every", type=float, default=60.0, help="seconds between two saved states")
    add("--eager", action="store_true", help="on CUDA, do not capture the steps as a graph")
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cuda", "cpu"), default=cuda, help="(default: %(default)s)")
    return parser


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {printable_lines(text)}", flush=True)
