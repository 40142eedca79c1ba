"""`python -m aol`: train runs on a machine that has torch and no orchestrator.

The runs come from `python -m orchestrator plan experiments.yaml --json`, the results go to folders
that `python -m orchestrator ingest` takes into the store. `python -m aol certify` certifies single
images with what was trained, see `aol.cli.certify`.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch

from aol.data.datasets import default_root
from aol.errors import DataError
from aol.training.run_folder import Outcome, Run, RunFolder

EXIT_FAILED, EXIT_USAGE, EXIT_CONTINUE = 3, 2, 75  # 75: the world's "temporary, try again"
CERTIFY = "certify"  # the other command
EPOCH_TIME_SAFETY = 1.5  # an epoch may take so many times the longest one so far


class Deadline:
    """Says when to stop: before the time is up, or after a signal."""

    def __init__(self, seconds: float | None) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds
        self.signal: int | None = None

    def __call__(self, next_s: float) -> bool:
        """Whether there is no time left for what takes so many seconds."""
        late = self.end is not None and time.monotonic() + EPOCH_TIME_SAFETY * next_s > self.end
        return late or self.signal is not None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Stop after the current epoch."""
        self.signal = number


def main(arguments: list[str] | None = None) -> int:
    """Train the runs one after another, or certify images; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [CERTIFY]:
        from aol.cli.certify import main as certify

        return certify(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        runs = chosen(options.config, options.run)
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"{options.config}: {error!r}: is it what `plan --json` printed?", file=sys.stderr)
        return EXIT_USAGE
    deadline = Deadline(options.until_seconds)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, deadline.on_signal)
    device = torch.device(options.device)
    outcomes = []
    for run in runs:
        if deadline(0.0):
            outcomes.append(Outcome.STOPPED)
            continue
        try:
            outcome = RunFolder(options.out / run.key).train(
                run,
                data_root=options.data,
                device=device,
                must_stop=deadline,
                save_every_s=options.save_every,
                record=not options.eager,
                say=_say,
            )
        except (DataError, ValueError) as error:
            print(f"run {run.id}: {error}", file=sys.stderr)
            return EXIT_USAGE
        _say(f"run {run.id} {run.name}: {outcome}")
        outcomes.append(outcome)
    if deadline.signal:
        return 128 + deadline.signal
    if {Outcome.DIVERGED, Outcome.UNSOUND} & set(outcomes):
        return EXIT_FAILED
    return EXIT_CONTINUE if Outcome.STOPPED in outcomes else 0


def chosen(config: Path, ids: list[int] | None) -> list[Run]:
    """The runs of a plan with these IDs in their order, or all of them.

    Raises: OSError, KeyError, TypeError, ValueError.
    """
    runs = [Run.from_plan(row) for row in json.loads(config.read_text(encoding="utf-8"))]
    if ids is None:
        return runs
    known = {run.id for run in runs}
    if unknown := sorted(set(ids) - known):
        raise ValueError(f"there is no run {unknown[0]}; the runs are {sorted(known)}")
    return sorted((run for run in runs if run.id in ids), key=lambda run: ids.index(run.id))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m aol",
        description=__doc__.split("\n\n")[0],
        epilog=f"python -m aol {CERTIFY} --help: certified radii of single images",
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="what `orchestrator plan --json` printed")
    add("--run", type=_ids, help="IDs of the runs, in this order, like 0,24,20 (default: all)")
    add("--data", type=Path, default=default_root(), help="data root (default: %(default)s)")
    add("--out", type=Path, required=True, help="folder of the results, a folder per run in it")
    add("--until-seconds", type=float, help="save and stop before so many seconds have passed")
    add("--save-every", type=float, default=60.0, help="seconds between two saved states")
    add("--eager", action="store_true", help="on CUDA, do not record the steps as a graph")
    cuda = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", choices=("cuda", "cpu"), default=cuda, help="(default: %(default)s)")
    return parser


def _ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
