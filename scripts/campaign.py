"""Trains a list of runs within the minutes of a command and of a lease; packs the results.

    python campaign.py --runs 0,24,20 --minutes 9 --lease-minutes 25 --collect FOLDER [-- options]

A run is begun if its epochs fit into what is left of the lease at the speed that `--rates` gives,
or if nothing is known of its speed. It is stopped, and its state saved, before the command's
minutes are over; the next call continues it. Starting Python and certifying a network take time
beside the training: `AROUND_S` is left for both. Every minute and at the end FOLDER/results.tar.xz
has all results so far, without states. What follows -- goes to `python -m aol`.
"""

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

RESULTS = ("run.json", "attempts.jsonl", "metrics.jsonl", "margins.f32", "end.json")
COLLECT_S = 60.0
AROUND_S = 20.0  # of a run's training: importing torch before, certifying after it
LEAST_S = 45.0  # less is not worth starting Python for
EXIT_USAGE = 2
RATES = 'seconds per epoch by run ID or network, like {"0": 0.5}'


def main() -> int:
    """Train what fits; returns the last exit code that was not 0."""
    options = _parser().parse_args()
    started = time.monotonic()
    lease = options.lease_minutes or options.minutes
    plan = {run["id"]: run for run in json.loads(Path("plan.json").read_text(encoding="utf-8"))}
    try:
        rates = rates_of(options.rates)
    except (OSError, AttributeError, TypeError, ValueError):
        print(
            f"--rates: {options.rates} is neither JSON nor a file of it: {RATES}", file=sys.stderr
        )
        return EXIT_USAGE
    numbers = [int(number) for number in options.runs.split(",")]
    if unknown := [number for number in numbers if number not in plan]:
        known = ", ".join(map(str, sorted(plan)))
        print(f"--runs: there is no run {unknown[0]}; the runs are {known}", file=sys.stderr)
        return EXIT_USAGE
    code = 0
    for number in numbers:
        run, passed = plan[number], time.monotonic() - started
        folder, left = options.out / run["key"], 60 * options.minutes - passed
        if (folder / "end.json").exists():
            continue
        if left < LEAST_S:
            print(f"{left:.0f} s are left: call again for run {number} and those after it")
            break
        rate = rates.get(str(number), rates.get(run["name"], 0.0))
        if rates and not rate:
            print(f"run {number}: no rate is given, it counts as fitting")
        needed, lent = rate * run["epochs"] + AROUND_S, 60 * lease - passed
        if not folder.exists() and needed > lent:
            print(f"run {number} needs {needed:.0f} s, {lent:.0f} s of the lease left: not begun")
            continue
        command = [sys.executable, "-m", "aol", "--config", "plan.json", "--data", "data"]
        command += ["--run", str(number), "--out", str(options.out), *options.more]
        command += ["--until-seconds", f"{left - AROUND_S:.0f}"]
        ended = train(command, options.out, options.collect)
        code = ended or code
        if ended >= 128:  # by a signal, which is meant for all of them
            break
    collect(options.out, options.collect)
    return code


def rates_of(text: str) -> dict[str, float]:
    """Seconds per epoch by run ID or network, from JSON or from a file of it.

    Raises: OSError, AttributeError, TypeError, ValueError.
    """
    given = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
    return {name: float(rate) for name, rate in json.loads(given).items()}


def train(command: list[str], out: Path, target: Path) -> int:
    """Train one run, collecting every minute; passes signals on and returns the exit code."""
    process = subprocess.Popen(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: process.send_signal(number))
    while True:
        try:
            code = process.wait(COLLECT_S)
        except subprocess.TimeoutExpired:
            collect(out, target)
        else:
            return code if code >= 0 else 128 - code


def collect(out: Path, target: Path) -> None:
    """Pack the results of all runs so far, without their states: a few MB, whole at any time."""
    target.mkdir(parents=True, exist_ok=True)
    aside = target / "results.part"
    with tarfile.open(aside, "w:xz") as archive:
        for run in sorted(out.glob("*")):
            for file in filter(Path.exists, (run / name for name in RESULTS)):
                archive.add(file, arcname=str(file.relative_to(out)))
    aside.replace(target / "results.tar.xz")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--runs", required=True, help="IDs in order, like 0,24,20")
    add("--minutes", type=float, required=True, help="of this command; then a run is stopped")
    add("--lease-minutes", type=float, help="that a run must fit into to be begun (--minutes)")
    add("--rates", default="{}", help=f"{RATES}, or a file of it")
    add("--out", type=Path, default=Path("out"))
    add("--collect", type=Path, required=True)
    add("more", nargs="*", help="options for `python -m aol`, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
