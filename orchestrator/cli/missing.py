"""What is missing and what it costs, for people and as JSON."""

import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.analysis.report import make_report
from orchestrator.analysis.verdicts import CellVerdict
from orchestrator.cli.options import (
    SPEC,
    AddressOption,
    JsonOption,
    OnlyOption,
    ProfileOption,
    ResultsOption,
    SetOption,
    SpecArgument,
    StoreOption,
    TableOption,
    app,
)
from orchestrator.cli.run import open_session
from orchestrator.formatting import (
    format_duration,
    format_significant,
    format_table,
    pluralize,
    to_json,
    with_note,
)
from orchestrator.planning.budget import Choice, choose_within_budget, parse_budget
from orchestrator.planning.remaining import RemainingWork, RunNeeds, Training, find_remaining_work
from orchestrator.planning.resources import Cluster, cpu_seconds
from orchestrator.store import Store, exists

if TYPE_CHECKING:
    from orchestrator.driver.session import Session

IN_MEMORY = "sqlite://"
NEVER = "no number settles it"
ASSUMED = "Cells without a value are taken to come out as published."


def missing_text(needs: RemainingWork, cluster: Cluster) -> str:
    """The open cells by run, with the seeds that would settle them, and what all of it takes."""
    rows = [
        _row(need, seeds, cells, needs) for need in needs.runs for seeds, cells in _by_seeds(need)
    ]
    if not rows:
        settled = pluralize(needs.cells, "cell is", "cells are")
        return with_note(needs.note, f"Nothing is open: {settled} settled.")
    headers = ["run", "name", "dataset", "cells", "verdict", "seeds", "--seeds", "GPU-hours"]
    headers.append(needs.prices.currency)
    table = format_table(rows, headers, left={"name", "dataset", "cells", "verdict", "--seeds"})
    return with_note(needs.note, f"{table}\n\n{_total(needs, cluster)}")


def _by_seeds(need: RunNeeds) -> Iterable[tuple[int | None, list[CellVerdict]]]:
    """The cells of a run that the same number of seeds settles, fewest seeds first."""
    for seeds in [*need.levels, None]:
        if cells := [one for one in need.cells if one.further_seeds == seeds]:
            yield seeds, cells


def _row(
    need: RunNeeds, seeds: int | None, cells: Sequence[CellVerdict], needs: RemainingWork
) -> list[str]:
    verdicts = dict.fromkeys(str(one.verdict) for one in cells)
    row = [str(need.run.id), need.run.name, need.run.train.data.name]
    row += [", ".join(one.cell.column for one in cells), ", ".join(verdicts)]
    if seeds is None:
        return [*row, "∞", NEVER, "", ""]
    hours = need.hours(seeds)
    money = hours * needs.prices.gpu_hour
    return [
        *row,
        str(seeds),
        replicates(need.trainings[:seeds]),
        format_significant(hours),
        f"{money:.2f}",
    ]


def _total(needs: RemainingWork, cluster: Cluster) -> str:
    open_cells = sum(len(need.cells) for need in needs.runs)
    seeds = sum(len(need.trainings) for need in needs.runs)
    are = "is" if open_cells == 1 else "are"
    said = [f"{open_cells} of {pluralize(needs.cells, 'cell')} {are} not settled."]
    if seeds:
        money = f"{needs.hours * needs.prices.gpu_hour:.2f} {needs.prices.currency}"
        said.append(
            f"All that seeds can settle takes {pluralize(seeds, 'training')}: "
            f"{format_significant(needs.hours)} GPU-hours, "
            f"{money} ({_basis(needs)}); on this cluster ({cluster}) about "
            f"{format_duration(eta_s(needs, cluster), rough=True)}. {ASSUMED}"
        )
    return " ".join(said)


def _basis(needs: RemainingWork) -> str:
    if needs.timed:
        return "by epochs timed on GPUs"
    guess = f"taking {needs.prices.tflops:g} TFLOP/s, as nothing like it was timed on a GPU"
    return f"partly {guess}" if any(need.timed for need in needs.runs) else guess


def eta_s(needs: RemainingWork, cluster: Cluster) -> float:
    """Seconds that all of it takes at least on a cluster: none ends before its longest run."""
    if not cluster.gpus:
        return cpu_seconds(needs.flop, cluster)
    longest = max(
        (
            one.hours / (need.run.resources.gpus or 1.0)
            for need in needs.runs
            for one in need.trainings
        ),
        default=0.0,
    )
    return 3600 * max(longest, needs.hours / cluster.gpus)


def replicates(trainings: Sequence[Training]) -> str:
    """Numbers of replicates as `--seeds` takes them, `0,2..4`."""
    spans: list[list[int]] = []
    for number in sorted(one.replicate for one in trainings):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}..{high}" for low, high in spans)


def missing_json(needs: RemainingWork, cluster: Cluster) -> str:
    """The same for programs, cell by cell."""
    return to_json(
        {
            "profile": needs.profile,
            "note": needs.note,
            "cells": [_cell(need, one, needs) for need in needs.runs for one in need.cells],
            "gpu_hours": needs.hours,
            "price": needs.hours * needs.prices.gpu_hour,
            "currency": needs.prices.currency,
            "timed": needs.timed,
            "eta_s": eta_s(needs, cluster) if needs.runs else 0.0,
        }
    )


def _cell(need: RunNeeds, judged: CellVerdict, needs: RemainingWork) -> dict[str, Any]:
    seeds = judged.further_seeds
    hours = None if seeds is None else need.hours(seeds)
    return {
        "cell": judged.cell.name,
        "run_id": need.run.id,
        "verdict": str(judged.verdict),
        "further_seeds": seeds,
        "replicates": [one.replicate for one in need.trainings[: seeds or 0]],
        "gpu_hours": hours,
        "price": None if hours is None else hours * needs.prices.gpu_hour,
    }


def budget_text(chosen: Sequence[Choice], needs: RemainingWork, hours: float, command: str) -> str:
    """What to train within the hours, in this order, and the commands that do it."""
    rows, spent, settled = [], 0.0, 0
    for choice in chosen:
        need = choice.need
        spent, settled = spent + choice.hours, settled + len(choice.settled)
        rows.append(
            [
                str(need.run.id),
                need.run.name,
                need.run.train.data.name,
                replicates(need.trainings[: choice.seeds]),
                str(len(choice.settled)),
                str(settled),
                format_significant(choice.hours),
                format_significant(spent),
                f"{spent * needs.prices.gpu_hour:.2f}",
            ]
        )
    headers = ["run", "name", "dataset", "--seeds", "settles", "in all", "GPU-hours", "in all"]
    headers.append(f"{needs.prices.currency} in all")
    open_cells = sum(len(need.cells) for need in needs.runs)
    left = (
        f"{format_significant(hours)} GPU-hours settle {settled} of "
        f"{pluralize(open_cells, 'open cell')} ({_basis(needs)}). "
        f"{ASSUMED}"
    )
    if not chosen:
        return with_note(needs.note, left)
    table = format_table(rows, headers, left={"name", "dataset", "--seeds"})
    return with_note(needs.note, "\n".join([table, "", left, *_commands(chosen, command)]))


def _commands(chosen: Sequence[Choice], command: str) -> Iterable[str]:
    """One per set of replicates, those of most cells an hour first."""
    by_seeds: dict[str, list[int]] = {}
    for choice in chosen:
        seeds = replicates(choice.need.trainings[: choice.seeds])
        by_seeds.setdefault(seeds, []).append(choice.need.run.id)
    for seeds, ids in by_seeds.items():
        yield f"{command} --only {','.join(map(str, ids))} --seeds {seeds}"


def budget_json(chosen: Sequence[Choice], needs: RemainingWork, hours: float) -> str:
    """The same for programs."""
    return to_json(
        {
            "profile": needs.profile,
            "note": needs.note,
            "budget_gpu_hours": hours,
            "timed": needs.timed,
            "chosen": [
                {
                    "run_id": choice.need.run.id,
                    "replicates": [one.replicate for one in choice.need.trainings[: choice.seeds]],
                    "settles": [one.cell.name for one in choice.settled],
                    "gpu_hours": choice.hours,
                    "price": choice.hours * needs.prices.gpu_hour,
                }
                for choice in chosen
            ],
        }
    )


@app.command()
def missing(
    context: typer.Context,
    spec: SpecArgument = SPEC,
    profile: ProfileOption = None,
    only: OnlyOption = None,
    settings: SetOption = None,
    address: AddressOption = "local",
    results: ResultsOption = None,
    store: StoreOption = None,
    table: TableOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the cells that are not settled, the runs that would settle them, and their cost."""
    with open_session(context, quiet=as_json) as session:
        needs = _needs(session, table)
        typer.echo((missing_json if as_json else missing_text)(needs, session.cluster))


def print_budget(session: "Session", budget: str, table: str | None, *, as_json: bool) -> None:
    """Print which runs settle most cells within a budget, in which order."""
    hours = parse_budget(budget, session.whole.prices)
    needs = _needs(session, table)
    chosen = choose_within_budget(needs.runs, hours)
    if as_json:
        typer.echo(budget_json(chosen, needs, hours))
    else:
        typer.echo(budget_text(chosen, needs, hours, _run_command(session)))


def _needs(session: "Session", table: str | None) -> RemainingWork:
    found = exists(session.store_location)
    store = Store(session.store_location if found else IN_MEMORY)  # then everything is missing
    report = make_report(session.whole, store)  # whose verdicts are those of all its cells
    only = {run.id for run in session.experiment.runs}
    return find_remaining_work(report, store, table and session.whole.table(table).id, only=only)


def _run_command(session: "Session") -> str:
    """Return `run` with the options that lead to this experiment and this store."""
    options = session.options
    places = {"--results": options.results, "--store": options.store}
    given = [part for name, place in places.items() if place for part in (name, str(place))]
    words = ["run", str(options.spec), *session.whole.options, *given]
    return f"python -m orchestrator {shlex.join(words)}"
