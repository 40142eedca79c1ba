"""A storm of kills over one experiment, and what is left of it.

`python -m tests.support.storm` kills processes of `run` at random moments and repeats the command
until every run is done. Then it compares store and MLflow with those of an undisturbed run.
"""

import argparse
import json
import os
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.shell import PROJECT

POLL_S = 0.005
WAIT_S = 10.0  # for a moment, before the kill happens at any other
EXIT_S = 180.0  # for a driver without its cluster, and for the workers of a killed driver
DEADLINE_S = 900.0  # for an invocation that nothing disturbs
MOMENTS = ("queued", "starting", "epoch", "saving", "saved", "certifying", "ended")
VICTIMS = {  # how often each is chosen: a worker is replaced, the others end the invocation
    "a worker": 6,
    "the driver": 2,
    "all processes": 1,
    "raylet": 1,
    "GCS": 1,
}


@dataclass
class Kill:
    """One kill: what was killed and when, and what it cost."""

    victim: str
    moment: str
    again: int  # recorded epochs that no checkpoint has, so that they are trained again
    seconds: float | None = None  # until the next epoch is recorded; None after another kill


@dataclass
class Storm:
    """An experiment in a folder, the command that trains it, and its kills so far."""

    folder: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    random: random.Random
    victims: dict[str, int] = field(default_factory=VICTIMS.copy)
    kills: list[Kill] = field(default_factory=list)
    struck: float = 0.0  # when the latest kill happened
    before: int = 0  # the number of epochs recorded then

    def rage(self, count: int) -> None:
        """Repeat the command and kill, until so many kills are done or every run is."""
        while len(self.kills) < count and not self.finished():
            driver = self.start()
            try:
                while len(self.kills) < count and driver.poll() is None:
                    self.kill_once(driver)
            finally:
                end_all(driver)

    def calm(self) -> int:
        """Run the command without a kill; return its exit code."""
        driver = self.start()
        try:
            return driver.wait(DEADLINE_S)
        finally:
            end_all(driver)

    def start(self) -> subprocess.Popen:
        """Start the command in a session of its own; its output is in `storm.log`."""
        with (self.folder / "storm.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "orchestrator", *self.arguments],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_once(self, driver: subprocess.Popen) -> None:
        """Wait for a random moment and kill a random victim; wait until the survivors cope."""
        wanted = self.random.choice(MOMENTS)
        moment = self.wait_for(wanted, driver)
        if driver.poll() is not None:  # every run has ended
            return
        (victim,) = self.random.choices([*self.victims], [*self.victims.values()])
        processes = find_victims(driver, victim, self.random)
        if not processes:  # it has not started yet
            victim, processes = "the driver", find_victims(driver, "the driver", self.random)
        children = family(driver)
        self.kills.append(Kill(victim, moment, self.unsaved_epochs()))
        self.struck, self.before = time.monotonic(), self.recorded()
        for process in processes:
            end(process)
        if victim == "a worker":
            psutil.wait_procs(processes)
            return
        driver.wait(EXIT_S)
        _, left = psutil.wait_procs(children, timeout=EXIT_S)
        assert not left, f"{victim} was killed, and {left} still run after {EXIT_S} s"

    def note_recovery(self) -> None:
        """Set the time that the latest kill cost, once an epoch is recorded."""
        if self.kills and self.kills[-1].seconds is None and self.recorded() != self.before:
            self.kills[-1].seconds = time.monotonic() - self.struck

    def wait_for(self, wanted: str, driver: subprocess.Popen) -> str:
        """Wait for a moment; return its name, or "other" if it did not come."""
        recorded, ended = self.recorded(), self.count("done")
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline and driver.poll() is None:
            self.note_recovery()
            if self.is_now(wanted, driver, recorded, ended):
                if wanted == "epoch":
                    time.sleep(self.random.random() / 2)
                return wanted
            time.sleep(POLL_S)
        return "other"

    def is_now(self, moment: str, driver: subprocess.Popen, recorded: int, ended: int) -> bool:
        """Return whether a moment has come."""
        match moment:
            case "queued":
                return self.count("pending") > 0
            case "starting":
                return bool(find_victims(driver, "a worker", self.random))
            case "epoch":
                return self.recorded() != recorded
            case "saving":
                return any(not summed(folder) for folder in self.checkpoints())
            case "saved":
                known = {one["path"] for run in self.runs() for one in run["checkpoints"]}
                return any(str(one) not in known for one in self.checkpoints() if summed(one))
            case "certifying":
                return any(
                    run["status"] == "running" and run["recorded"] == run["epochs"]
                    for run in self.runs()
                )
            case _:
                return self.count("done") > ended

    # What is recorded

    def runs(self) -> list[dict]:
        """Return the runs of the store with their number of recorded epochs."""
        query = (
            "SELECT key, status, epochs, checkpoints, "
            "(SELECT count(*) FROM epochs WHERE epochs.key = runs.key) AS recorded FROM runs"
        )
        rows = self.query("results/store.db", query)
        return [dict(row) | {"checkpoints": json.loads(row["checkpoints"])} for row in rows]

    def query(self, name: str, sql: str) -> list[sqlite3.Row]:
        """Return rows of a database that may not exist yet."""
        file = self.folder / name
        if not file.exists():
            return []
        with closing(sqlite3.connect(file, timeout=30)) as database:
            database.row_factory = sqlite3.Row
            try:
                return database.execute(sql).fetchall()
            except sqlite3.OperationalError:  # the tables do not exist yet
                return []

    def count(self, status: str) -> int:
        return sum(run["status"] == status for run in self.runs())

    def recorded(self) -> int:
        return sum(run["recorded"] for run in self.runs())

    def finished(self) -> bool:
        runs = self.runs()
        return bool(runs) and all(run["status"] == "done" for run in runs)

    def unsaved_epochs(self) -> int:
        """Return the recorded epochs of unfinished runs that no checkpoint has."""
        return sum(
            run["recorded"] - max([one["epoch"] for one in run["checkpoints"]], default=0)
            for run in self.runs()
            if run["status"] == "running"
        )

    def checkpoints(self) -> list[Path]:
        return list(self.folder.glob("results/ray/*/*/checkpoint_*"))

    # What must be as without a kill

    def metrics(self) -> dict[tuple, float]:
        """Return every metric of the store that does not depend on time."""
        rows = self.query("results/store.db", "SELECT key, epoch, name, value FROM metrics")
        return {
            (row["key"], row["epoch"], row["name"]): row["value"]
            for row in rows
            if row["name"] not in ("seconds", "images_per_s")
        }

    def margins(self) -> dict[str, bytes]:
        rows = self.query("results/store.db", 'SELECT key, "values" FROM margins')
        return {row["key"]: row["values"] for row in rows}

    def mlflow_steps(self) -> Counter:
        """Return how often MLflow has each step of a run's training loss."""
        rows = self.query(
            "mlflow.db",
            "SELECT tags.value AS run, step FROM metrics "
            "JOIN tags ON tags.run_uuid = metrics.run_uuid AND tags.key = 'mlflow.runName' "
            "JOIN runs ON runs.run_uuid = metrics.run_uuid AND lifecycle_stage = 'active' "
            "WHERE metrics.key = 'train_loss'",
        )
        return Counter((row["run"], row["step"]) for row in rows)


def summed(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete, or is being deleted."""
    return (checkpoint / "state.pt.sha256").exists() or not (checkpoint / "state.pt").exists()


def family(driver: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that a driver started."""
    try:
        return psutil.Process(driver.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def find_victims(
    driver: subprocess.Popen, victim: str, chance: random.Random
) -> list[psutil.Process]:
    """Return the processes to kill, none if they have not started."""
    children = family(driver)
    if victim == "all processes":
        return [*children, psutil.Process(driver.pid)] if driver.poll() is None else []
    if victim == "the driver":
        return [psutil.Process(driver.pid)] if driver.poll() is None else []
    name = {"a worker": "ImplicitFunc", "raylet": "raylet/raylet", "GCS": "gcs_server"}[victim]
    found = [process for process in children if name in command_of(process)]
    return [chance.choice(found)] if found else []


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def end_all(driver: subprocess.Popen) -> None:
    """Kill what is left of an invocation."""
    for process in find_victims(driver, "all processes", random.Random()):
        end(process)
    driver.wait()


def table(kills: list[Kill]) -> str:
    """Return a Markdown table of kills by victim, for `docs/reliability.md`."""
    lines = [
        "| killed | times | epochs trained again | seconds to the next epoch (median, longest) |",
        "|---|---|---|---|",
    ]
    for victim in VICTIMS:
        some = [kill for kill in kills if kill.victim == victim]
        seconds = sorted(kill.seconds for kill in some if kill.seconds is not None)
        times = f"{seconds[len(seconds) // 2]:.1f}, {seconds[-1]:.1f}" if seconds else "-"
        lines.append(f"| {victim} | {len(some)} | {sum(kill.again for kill in some)} | {times} |")
    return "\n".join(lines)


def differences(storm: Storm, calm: Storm) -> dict[str, int]:
    """Return how many runs, epochs, values and steps differ from the undisturbed experiment."""
    expected, found = calm.metrics(), storm.metrics()
    steps = storm.mlflow_steps()
    return {
        "runs lost": len(calm.margins().keys() - storm.margins().keys()),
        "epochs lost": len(calm.mlflow_steps().keys() - steps.keys()),
        "epochs repeated": sum(count - 1 for count in steps.values()),
        "values that differ": len(expected.items() ^ found.items()),
        "margins that differ": len(calm.margins().items() ^ storm.margins().items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill processes of a demo at random moments.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--only", default="0-2,10-12,20-24,30-32", help="IDs of the runs")
    parser.add_argument("folder", type=Path, help="an empty folder")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--only", options.only)
    storms = []
    for name in ("calm", "storm"):
        folder = options.folder / name
        folder.mkdir(parents=True)
        text = (PROJECT / "experiments.yaml").read_text(encoding="utf-8")
        frequent = text.replace("checkpoint_seconds: 3", "checkpoint_seconds: 0.5")
        (folder / "experiments.yaml").write_text(frequent, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        storms.append(Storm(folder, arguments, environment, random.Random(options.seed)))
    calm, storm = storms
    assert calm.calm() == 0
    storm.rage(options.kills)
    code = storm.calm()
    print(table(storm.kills))
    print("moments:", dict(Counter(kill.moment for kill in storm.kills)))
    print(f"compared: {len(calm.margins())} runs, {len(calm.metrics())} values")
    print("differences:", found := differences(storm, calm))
    sys.exit(code or any(found.values()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
