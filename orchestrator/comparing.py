"""Finished runs side by side on the same test images."""

import json
from dataclasses import asdict

from orchestrator.cells import runs_of
from orchestrator.grid import grid
from orchestrator.margins import Compared, compare, read_margins, share
from orchestrator.numbers import shown
from orchestrator.spec import Experiment
from orchestrator.store import Status, Store


class CompareError(Exception):
    """Runs that cannot be compared: which, why, and what to do."""

    exit_code = 2


def compared(
    experiment: Experiment, store: Store, pair: tuple[int, int], replicate: int = 0
) -> dict[str, Compared]:
    """By column, two runs on the same test images. Raises: CompareError, SpecError."""
    experiment.select(pair, "compare")
    runs = {run.id: run for run in experiment.runs}
    names = {runs[run_id].train.data.name for run_id in pair}
    if len(names) > 1:
        raise CompareError(f"runs {pair[0]} and {pair[1]} have other images: {', '.join(names)}")
    found = []
    for run_id in pair:
        seed = runs[run_id].replicate_seed(replicate)
        stored = runs_of(experiment, store)[run_id]
        done = [run for run in stored if run.seed == seed and run.status is Status.DONE]
        margins = store.margins(done[0].key) if done else None
        if margins is None:
            raise CompareError(
                f"run {run_id} with seed {seed} of the profile `{experiment.profile}` is not "
                "finished; `status` shows what is"
            )
        found.append(read_margins(margins))
    radii = [column.radius for column in experiment.columns]
    titles = [column.title for column in experiment.columns]
    try:
        return dict(zip(titles, compare(found[0], found[1], radii), strict=True))
    except ValueError as error:
        raise CompareError(str(error)) from error


def comparison_table(
    found: dict[str, Compared], pair: tuple[int, int], *, as_json: bool = False
) -> str:
    """The comparison for people, or as JSON."""
    if as_json:
        return json.dumps({title: asdict(one) for title, one in found.items()}, indent=2)
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
    return grid(rows, headers, left={""})


def cra_table(experiment: Experiment, store: Store, radius: float, *, as_json: bool = False) -> str:
    """Every finished run's certified robust accuracy at a radius."""
    records = [
        {
            "run_id": run.run_id,
            "name": run.name,
            "dataset": run.config["data"]["name"],
            "seed": run.seed,
            "radius": radius,
            "cra": share(read_margins(margins), radius),
        }
        for runs in runs_of(experiment, store).values()
        for run in runs
        if run.status is Status.DONE and (margins := store.margins(run.key))
    ]
    if as_json:
        return json.dumps(records, indent=2)
    rows = [
        [one["run_id"], one["name"], one["dataset"], one["seed"], shown(100 * float(one["cra"]))]
        for one in records
    ]
    headers = ["run", "name", "dataset", "seed", f"CRA {radius:g}"]
    return grid(rows, headers, left={"name", "dataset"})
