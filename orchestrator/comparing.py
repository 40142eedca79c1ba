"""Finished runs side by side on the same test images."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from orchestrator.cells import finished_run, runs_of
from orchestrator.grid import grid
from orchestrator.margins import Compared, compare, margins_of, share
from orchestrator.numbers import shown
from orchestrator.spec import Experiment, RunSpec, noted
from orchestrator.store import Status, Store, StoredRun

if TYPE_CHECKING:
    from orchestrator.margins import Margins


class CompareError(Exception):
    """Runs that cannot be compared: which, why, and what to do."""

    exit_code = 2


def compared(
    experiment: Experiment, store: Store, pair: tuple[int, int], replicate: int = 0
) -> dict[str, Compared]:
    """By column, two runs on the same test images.

    Raises: CompareError, MarginsError, SpecError, UnfinishedError.
    """
    if pair[0] == pair[1]:
        raise CompareError(f"run {pair[0]} does not differ from itself; name two runs")
    experiment.select(pair, "compare")
    runs = {run.id: run for run in experiment.replicates([replicate]).runs}
    first, second = (runs[run_id] for run_id in pair)
    if first.train.data.name != second.train.data.name:
        names = f"{first.train.data.name}, {second.train.data.name}"
        raise CompareError(f"runs {first.id} and {second.id} have other images: {names}")
    found = [_margins(experiment, store, run) for run in (first, second)]
    radii = [column.radius for column in experiment.columns]
    titles = [column.title for column in experiment.columns]
    try:
        return dict(zip(titles, compare(found[0], found[1], radii), strict=True))
    except ValueError as error:
        raise CompareError(str(error)) from error


def _margins(experiment: Experiment, store: Store, run: RunSpec) -> "Margins":
    """The margins of a finished run. Raises: CompareError, MarginsError, UnfinishedError."""
    stored = finished_run(experiment, store, run)
    margins = margins_of(store, stored)
    if margins is None:
        raise CompareError(
            f"run {run.id}: the store has no margins of {stored.key}; `run --rerun {run.id}` makes "
            "them"
        )
    return margins


def comparison_table(
    experiment: Experiment,
    found: Mapping[str, Compared],
    pair: tuple[int, int],
    *,
    as_json: bool = False,
) -> str:
    """The comparison for people, or as JSON."""
    if as_json:
        return json.dumps(
            {
                "profile": experiment.profile,
                "note": experiment.note,
                "runs": pair,
                "columns": {title: asdict(one) for title, one in found.items()},
            },
            indent=2,
            ensure_ascii=False,
        )
    rows = [
        [
            title,
            shown(100 * one.first),
            shown(100 * one.second),
            shown(100 * (one.second - one.first), signed=True),
            "[{}, {}]".format(*(shown(100 * end, signed=True) for end in one.interval)),
            one.only_first,
            one.only_second,
            f"{one.p:.2g}",
        ]
        for title, one in found.items()
    ]
    headers = ["", f"run {pair[0]}", f"run {pair[1]}", "difference", "95 % interval"]
    headers += [f"only {pair[0]}", f"only {pair[1]}", "McNemar's p"]
    return noted(experiment.note, grid(rows, headers, left={""}))


def without_margins(experiment: Experiment, store: Store) -> list[str]:
    """A line per finished run that no radius can be asked of."""
    return [
        f"run {run.run_id}, seed {run.seed}: left out, the store has no margins of it; `run "
        f"--rerun {run.run_id}` makes them"
        for run in _finished(experiment, store)
        if store.margins(run.key) is None
    ]


def _finished(experiment: Experiment, store: Store) -> list[StoredRun]:
    found = runs_of(experiment, store).values()
    return [run for runs in found for run in runs if run.status is Status.DONE]


def cra_table(experiment: Experiment, store: Store, radius: float, *, as_json: bool = False) -> str:
    """The certified robust accuracy at a radius of every finished run that has margins.

    Raises: MarginsError.
    """
    records = [
        {
            "profile": experiment.profile,
            "note": experiment.note,
            "run_id": run.run_id,
            "name": run.name,
            "dataset": run.config["data"]["name"],
            "seed": run.seed,
            "radius": radius,
            "cra": share(margins, radius),
        }
        for run in _finished(experiment, store)
        if (margins := margins_of(store, run)) is not None
    ]
    if as_json:
        return json.dumps(records, indent=2, ensure_ascii=False)
    rows = [
        [one["run_id"], one["name"], one["dataset"], one["seed"], shown(100 * float(one["cra"]))]
        for one in records
    ]
    headers = ["run", "name", "dataset", "seed", f"CRA {radius:g}"]
    return noted(experiment.note, grid(rows, headers, left={"name", "dataset"}))
