"""How long the result store takes on many runs: `python -m benchmarks.store --runs 10000`.

Builds a store of runs with 11 metrics an epoch, half of the runs in a profile of their own, and
prints the median time of each operation.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import insert, update

from aol.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from orchestrator.provenance import Provenance
from orchestrator.spec import RunSpec
from orchestrator.store import Status, Store
from orchestrator.store.schema import EpochRow, MetricRow, RunRow

METRICS = [f"metric_{number}" for number in range(11)]
STAMP = "2026-01-01T00:00:00.000+00:00"
CHUNK = 50_000  # rows an insert
REPEATS = 20
CONFIG = TrainConfig(
    model=ModelConfig(kind="patchwise"),
    data=DataConfig(name="digits"),
    loss=LossConfig(offset=1.0, temperature=1.0),
)


def build(store: Store, runs: int, epochs: int) -> list[str]:
    """Fill a store with finished runs; returns their keys."""
    specs = [_spec(number, epochs) for number in range(runs)]
    store.queue(specs)
    keys = [spec.key for spec in specs]
    _insert(
        store,
        EpochRow,
        (
            {"key": key, "epoch": epoch, "recorded_at": STAMP}
            for key in keys
            for epoch in range(1, epochs + 1)
        ),
    )
    _insert(
        store,
        MetricRow,
        (
            {"key": key, "epoch": epoch, "name": name, "value": 0.5}
            for key in keys
            for epoch in range(1, epochs + 1)
            for name in METRICS
        ),
    )
    with store.engine.begin() as connection:
        connection.execute(update(RunRow).values(status=Status.DONE))
    return keys


def _spec(number: int, epochs: int) -> RunSpec:
    return RunSpec(
        id=number,
        name="AOL-Small",
        profile="other" if number % 2 else "paper",
        train=replace(CONFIG, epochs=epochs, seed=number),
    )


def _insert(store: Store, table: Any, rows: Iterator[dict[str, object]]) -> None:
    while chunk := list(islice(rows, CHUNK)):
        with store.engine.begin() as connection:
            connection.execute(insert(table), chunk)


def measure(store: Store, keys: list[str], epochs: int) -> Iterator[tuple[str, float]]:
    """The name and the median seconds of each operation."""
    fourteen = keys[:14]
    yield "runs([key])", _median(lambda: store.runs(keys[:1]))
    yield "runs(14 keys)", _median(lambda: store.runs(fourteen))
    yield "runs()", _median(store.runs, repeats=3)
    yield "final(14 keys)", _median(lambda: store.final(fourteen))
    yield "metrics(key)", _median(lambda: store.metrics(keys[0]))
    yield "metrics(key, last 5 epochs)", _median(lambda: store.metrics(keys[0], after=epochs - 5))
    yield "recorded_at(key)", _median(lambda: store.recorded_at(keys[0]))
    fresh = _spec(len(keys), epochs)
    store.queue([fresh])
    store.start(fresh, Provenance(None, {}, ""))
    epoch = iter(range(1, REPEATS + 1))
    values = dict.fromkeys(METRICS, 0.5)
    yield "record(one epoch)", _median(lambda: store.record(fresh.key, next(epoch), values))
    yield "beat()", _median(store.beat)
    store.frame("no profile")  # imports pandas
    yield "frame(one profile)", _median(lambda: store.frame("paper"), repeats=1)


def _median(work: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return median(times)


def main() -> None:
    """Build a store, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--store", help="An empty database; by default a temporary SQLite file.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(given.store or Path(folder) / "store.db")
        started = time.perf_counter()
        keys = build(store, given.runs, given.epochs)
        rows = given.runs * given.epochs * len(METRICS)
        print(f"{given.runs} runs, {rows:,} metrics, {time.perf_counter() - started:.0f} s to make")
        for name, seconds in measure(store, keys, given.epochs):
            print(f"{name:30}{seconds * 1000:12.2f} ms")
        store.close()


if __name__ == "__main__":
    main()
