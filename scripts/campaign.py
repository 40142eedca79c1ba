"""Trains a list of runs within a number of minutes, each only if it fits; packs the results.

    python campaign.py --runs 0,24,20 --minutes 9 --collect FOLDER [-- options of `python -m aol`]

A run is begun if its epochs fit into what is left at the speed that `--rates` gives; one that was
begun is continued in any case. After every run FOLDER/results.tar.xz has all results so far,
without states.
"""

import argparse
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

RESULTS = ("run.json", "attempts.jsonl", "metrics.jsonl", "margins.f32", "end.json")


def main() -> int:
    """Train what fits; returns the last exit code that was not 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--runs", required=True, help="IDs in order, like 0,24,20")
    add("--minutes", type=float, required=True)
    add("--rates", default="{}", help='seconds per epoch by ID, as JSON: {"0": 0.5}')
    add("--out", type=Path, default=Path("out"))
    add("--collect", type=Path, required=True)
    add("more", nargs="*", help="options for `python -m aol`, after --")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    plan = {run["id"]: run for run in json.loads(Path("plan.json").read_text(encoding="utf-8"))}
    rates = {int(run): float(rate) for run, rate in json.loads(options.rates).items()}
    code = 0
    for number in map(int, options.runs.split(",")):
        run, left = plan[number], ends - time.monotonic()
        folder = options.out / run["key"]
        needed = rates.get(number, 0.0) * run["epochs"]
        if not folder.exists() and needed > left:
            print(f"run {number} needs {needed:.0f} s and {left:.0f} s are left: not begun")
            continue
        command = [sys.executable, "-m", "aol", "--config", "plan.json", "--data", "data"]
        command += ["--run", str(number), "--out", str(options.out), *options.more]
        code = subprocess.call([*command, "--until-seconds", f"{left:.0f}"]) or code
        collect(options.out, options.collect)
    return code


def collect(out: Path, target: Path) -> None:
    """Pack the results of all runs so far, without their states: a few MB."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(target / "results.tar.xz", "w:xz") as archive:
        for run in sorted(out.iterdir()):
            for file in filter(Path.exists, (run / name for name in RESULTS)):
                archive.add(file, arcname=str(file.relative_to(out)))


if __name__ == "__main__":
    sys.exit(main())
