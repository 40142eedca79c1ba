"""Train a list of runs within the time of a command and of a lease, and pack the results.

    python campaign.py --runs 0,24,20 --minutes 9 --lease-minutes 25 --collect FOLDER [-- options]

A run is started if its epochs fit into the rest of the lease at the speed that `--rates` gives, or
if its speed is unknown. It is stopped and its state saved before the command's minutes are over;
the next call continues it. Starting Python and certifying a network take time besides training:
`OVERHEAD_S` is reserved for both. FOLDER/results.tar.xz, written every minute and at the end, has
all results so far, without states. Options after -- are passed to `python -m aol`.
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
OVERHEAD_S = 20.0  # of a run: importing torch before training, certifying after it
LEAST_S = 45.0  # with less time left, no run is started
EXIT_USAGE = 2
RATES = 'seconds per epoch by run ID or network, like {"0": 0.5}'


def main() -> int:
    """Train the runs that fit; return the last exit code that was not 0."""
    options = _parser().parse_args()
    started = time.monotonic()
    lease = options.lease_minutes or options.minutes
    plan = {run["id"]: run for run in json.loads(Path("plan.json").read_text(encoding="utf-8"))}
    try:
        rates = read_rates(options.rates)
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
            print(f"{left:.0f} s are left: call again for run {number} and the runs after it")
            break
        rate = rates.get(str(number), rates.get(run["name"], 0.0))
        if rates and not rate:
            print(f"run {number}: no rate is given, it is started in any case")
        needed, lent = rate * run["epochs"] + OVERHEAD_S, 60 * lease - passed
        if not folder.exists() and needed > lent:
            print(f"run {number} needs {needed:.0f} s, {lent:.0f} s of the lease left: not started")
            continue
        command = [sys.executable, "-m", "aol", "--config", "plan.json", "--data", "data"]
        command += ["--run", str(number), "--out", str(options.out), *options.more]
        command += ["--until-seconds", f"{left - OVERHEAD_S:.0f}"]
        ended = train(command, options.out, options.collect)
        code = ended or code
        if ended >= 128:  # by a signal, which stops all runs
            break
    collect(options.out, options.collect)
    return code


def read_rates(text: str) -> dict[str, float]:
    """Return the seconds per epoch by run ID or network, from JSON or from a JSON file.

    Raises: OSError, AttributeError, TypeError, ValueError.
    """
    given = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
    return {name: float(rate) for name, rate in json.loads(given).items()}


def train(command: list[str], out: Path, target: Path) -> int:
    """Train one run, collect every minute and forward signals; return the exit code."""
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
    """Pack the results of all runs so far, without their states, in an atomic write."""
    target.mkdir(parents=True, exist_ok=True)
    part = target / "results.part"
    with tarfile.open(part, "w:xz") as archive:
        for run in sorted(out.glob("*")):
            for file in filter(Path.exists, (run / name for name in RESULTS)):
                archive.add(file, arcname=str(file.relative_to(out)))
    part.replace(target / "results.tar.xz")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--runs", required=True, help="IDs in order, like 0,24,20")
    add(
        "--minutes",
        type=float,
        required=True,
        help="time of this command, after which a run is stopped",
    )
    add(
        "--lease-minutes",
        type=float,
        help="time that a run must fit into to be started (default: --minutes)",
    )
    add("--rates", default="{}", help=f"{RATES}, or a file with this JSON")
    add("--out", type=Path, default=Path("out"))
    add("--collect", type=Path, required=True)
    add("more", nargs="*", help="options of `python -m aol`, after --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
