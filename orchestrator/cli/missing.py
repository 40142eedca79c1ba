"""`missing`, and `plan --budget`: unresolved cells and the cost of resolving them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.analysis.report import Report, make_report
from orchestrator.analysis.verdicts import CellVerdict
from orchestrator.cli.options import JsonOption, SessionOptions, TableOption, command, store_options
from orchestrator.formatting import (
    format_command,
    format_duration,
    format_significant,
    format_table,
    pluralize,
    to_json,
    with_note,
)
from orchestrator.planning.budget import Allocation, allocate_budget, parse_budget
from orchestrator.planning.resources import Cluster, cpu_seconds
from orchestrator.planning.unresolved import (
    ClaimNeeds,
    RemainingWork,
    RunNeeds,
    Training,
    claim_needs,
    find_remaining_work,
)
from orchestrator.spec.claims import Cheaper
from orchestrator.spec.schema import Prices
from orchestrator.store import Store, exists

if TYPE_CHECKING:
    from orchestrator.driver.session import Session

IN_MEMORY = "sqlite://"
ASSUMPTION = "Cells without a value are assumed to come out as published."


@command
def missing(
    options: SessionOptions, table: TableOption = None, as_json: JsonOption = False
) -> None:
    """Print the unresolved cells and their cost.

    The cost is that of the runs that would resolve them, in GPU-hours and money.
    """
    with options.open_session(quiet=as_json) as session:
        report, store = _report(session)
        work = _remaining_work(session, report, store, table)
        claims = [] if table else claim_needs(report, store)
        typer.echo((missing_json if as_json else missing_text)(work, session.cluster, claims))


def print_budget(session: "Session", budget: str, table: str | None, *, as_json: bool) -> None:
    """Print which runs resolve most cells within a budget, in their order."""
    hours = parse_budget(budget, session.whole.prices)
    work = _remaining_work(session, *_report(session), table)
    allocations = allocate_budget(work.runs, hours)
    if as_json:
        typer.echo(budget_json(allocations, work, hours))
    else:
        typer.echo(budget_text(allocations, work, hours, _run_command(session)))


def _report(session: "Session") -> tuple[Report, Store]:
    """Return the report of the whole experiment, and its store."""
    location = session.store_location
    store = Store(location if exists(location) else IN_MEMORY)
    return make_report(session.whole, store), store


def _remaining_work(
    session: "Session", report: Report, store: Store, table: str | None
) -> RemainingWork:
    """Return the work for the session's runs; the verdicts are those of the whole experiment."""
    only = {run.id for run in session.experiment.runs}
    return find_remaining_work(report, store, table and session.whole.table(table).id, only=only)


def _run_command(session: "Session") -> str:
    """Return the `run` command with the options that select this experiment and this store."""
    options = session.options
    return format_command("run", options.spec, *session.whole.options, *store_options(options))


def missing_text(work: RemainingWork, cluster: Cluster, claims: Sequence[ClaimNeeds] = ()) -> str:
    """Return what is undecided and its cost: claims, then the unresolved cells by run."""
    parts = [_claims_text(claims, work.prices)] if claims else []
    if work.cells:
        parts.append(_cells_text(work, cluster))
    elif not claims:
        parts.append("Nothing is missing: every claim is decided.")
    return with_note(work.note, "\n\n".join(parts))


def _claims_text(claims: Sequence[ClaimNeeds], prices: Prices) -> str:
    """Return a table of the claims that are not decided, with what would decide them."""
    rows = []
    for needs in claims:
        judged = needs.judged
        runs: dict[int, list[Training]] = {}
        for run, training in needs.trainings:
            runs.setdefault(run.id, []).append(training)
        row = [judged.claim.id, str(judged.verdict)]
        if not needs.trainings:
            by_costs = isinstance(judged.claim.relation, Cheaper)
            need = "rounds of its benchmark" if by_costs else "no number of seeds decides it"
            rows.append([*row, need, "", "", "", ""])
            continue
        replicates = {format_replicates(trainings) for trainings in runs.values()}
        seeds = replicates.pop() if len(replicates) == 1 else "by run"
        hours = format_significant(needs.hours)
        basis = "timed" if needs.timed else "estimated"
        basis += " on a CPU" if needs.on_cpu else " on a GPU"
        price = "–" if needs.on_cpu else f"{needs.hours * prices.gpu_hour:.2f}"
        rows.append([*row, ",".join(map(str, runs)), seeds, hours, price, basis])
    headers = ["claim", "verdict", "--only", "--seeds", "hours", prices.currency, "basis"]
    return format_table(rows, headers, left={"claim", "verdict", "--only", "--seeds", "basis"})


def _cells_text(work: RemainingWork, cluster: Cluster) -> str:
    """Return a table of the unresolved cells by run, and the total cost of resolving them."""
    rows = [
        _row(needs, seeds, cells, work) for needs in work.runs for seeds, cells in _by_seeds(needs)
    ]
    if not rows:
        cells = pluralize(work.cells, "cell is", "cells are")
        return f"Nothing is missing: {cells} resolved."
    headers = ["run", "name", "dataset", "cells", "verdict", "seeds", "--seeds", "GPU-hours"]
    headers.append(work.prices.currency)
    table = format_table(rows, headers, left={"name", "dataset", "cells", "verdict", "--seeds"})
    return f"{table}\n\n{_total(work, cluster)}"


def _by_seeds(needs: RunNeeds) -> Iterator[tuple[int | None, list[CellVerdict]]]:
    """Yield the cells of a run by the number of seeds that resolves them, fewest seeds first."""
    for seeds in [*needs.seed_counts, None]:
        if cells := [cell for cell in needs.cells if cell.further_seeds == seeds]:
            yield seeds, cells


def _row(
    needs: RunNeeds, seeds: int | None, cells: Sequence[CellVerdict], work: RemainingWork
) -> list[str]:
    verdicts = dict.fromkeys(str(one.verdict) for one in cells)
    row = [str(needs.run.id), needs.run.name, needs.run.train.data.name]
    row += [", ".join(one.cell.column for one in cells), ", ".join(verdicts)]
    if seeds is None:
        return [*row, "∞", "no number of seeds resolves it", "", ""]
    hours = needs.hours(seeds)
    replicates = format_replicates(needs.trainings[:seeds])
    return [*row, str(seeds), replicates, format_significant(hours), _money(hours, work)]


def _total(work: RemainingWork, cluster: Cluster) -> str:
    unresolved = sum(len(needs.cells) for needs in work.runs)
    verb = "is" if unresolved == 1 else "are"
    count = f"{unresolved} of {pluralize(work.cells, 'cell')} {verb} unresolved."
    trainings = sum(len(needs.trainings) for needs in work.runs)
    if not trainings:
        return count
    return (
        f"{count} All that can be resolved takes {pluralize(trainings, 'training')}: "
        f"{format_significant(work.hours)} GPU-hours, {_money(work.hours, work)} "
        f"{work.prices.currency} ({_basis(work)}); on this cluster ({cluster}) about "
        f"{format_duration(eta_s(work, cluster), rough=True)}. {ASSUMPTION}"
    )


def _money(hours: float, work: RemainingWork) -> str:
    return f"{hours * work.prices.gpu_hour:.2f}"


def _basis(work: RemainingWork) -> str:
    """Return how the GPU-hours were estimated."""
    if work.timed:
        return "estimated from epochs timed on GPUs"
    assumption = f"assuming {work.prices.tflops:g} TFLOP/s, without timed epochs on a GPU"
    return f"partly {assumption}" if any(needs.timed for needs in work.runs) else assumption


def eta_s(work: RemainingWork, cluster: Cluster) -> float:
    """Return the seconds that the work takes at least on a cluster, given its longest run."""
    if not cluster.gpus:
        return cpu_seconds(work.flop, cluster)
    longest = max(
        (
            training.hours / (needs.run.resources.gpus or 1.0)
            for needs in work.runs
            for training in needs.trainings
        ),
        default=0.0,
    )
    return 3600 * max(longest, work.hours / cluster.gpus)


def format_replicates(trainings: Sequence[Training]) -> str:
    """Return the replicates in the syntax of `--seeds`, such as `0,2..4`."""
    spans: list[list[int]] = []
    for number in sorted(training.replicate for training in trainings):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}..{high}" for low, high in spans)


def missing_json(work: RemainingWork, cluster: Cluster, claims: Sequence[ClaimNeeds] = ()) -> str:
    """Return what is undecided as JSON, with the total cost of resolving the cells."""
    return to_json(
        {
            "profile": work.profile,
            "note": work.note,
            "claims": [_claim_record(needs, work.prices) for needs in claims],
            "cells": [
                _cell_record(needs, cell, work) for needs in work.runs for cell in needs.cells
            ],
            "gpu_hours": work.hours,
            "price": work.hours * work.prices.gpu_hour,
            "currency": work.prices.currency,
            "timed": work.timed,
            "eta_s": eta_s(work, cluster) if work.runs else 0.0,
        }
    )


def _claim_record(needs: ClaimNeeds, prices: Prices) -> dict[str, Any]:
    return {
        "claim": needs.judged.claim.id,
        "verdict": str(needs.judged.verdict),
        "trainings": [
            {"run_id": run.id, "replicate": training.replicate, "hours": training.hours}
            for run, training in needs.trainings
        ],
        "hours": needs.hours,
        "price": None if needs.on_cpu else needs.hours * prices.gpu_hour,
        "timed": needs.timed,
    }


def _cell_record(needs: RunNeeds, judged: CellVerdict, work: RemainingWork) -> dict[str, Any]:
    seeds = judged.further_seeds
    hours = None if seeds is None else needs.hours(seeds)
    return {
        "cell": judged.cell.name,
        "run_id": needs.run.id,
        "verdict": str(judged.verdict),
        "further_seeds": seeds,
        "replicates": [training.replicate for training in needs.trainings[: seeds or 0]],
        "gpu_hours": hours,
        "price": None if hours is None else hours * work.prices.gpu_hour,
    }


def budget_text(
    allocations: Sequence[Allocation], work: RemainingWork, hours: float, command: str
) -> str:
    """Return a table of what to train within the GPU-hours, and the commands for it."""
    rows, spent, resolved = [], 0.0, 0
    for allocation in allocations:
        run = allocation.needs.run
        spent, resolved = spent + allocation.hours, resolved + len(allocation.resolved)
        rows.append(
            [
                str(run.id),
                run.name,
                run.train.data.name,
                format_replicates(allocation.trainings),
                str(len(allocation.resolved)),
                str(resolved),
                format_significant(allocation.hours),
                format_significant(spent),
                _money(spent, work),
            ]
        )
    headers = ["run", "name", "dataset", "--seeds", "resolves", "total", "GPU-hours", "total"]
    headers.append(f"{work.prices.currency} total")
    unresolved = sum(len(needs.cells) for needs in work.runs)
    summary = (
        f"{format_significant(hours)} GPU-hours resolve {resolved} of "
        f"{pluralize(unresolved, 'unresolved cell')} ({_basis(work)}). {ASSUMPTION}"
    )
    if not allocations:
        return with_note(work.note, summary)
    table = format_table(rows, headers, left={"name", "dataset", "--seeds"})
    return with_note(work.note, "\n".join([table, "", summary, *_commands(allocations, command)]))


def _commands(allocations: Sequence[Allocation], command: str) -> Iterator[str]:
    """Yield a command per set of replicates, in the order of the allocations."""
    by_seeds: dict[str, list[int]] = {}
    for allocation in allocations:
        seeds = format_replicates(allocation.trainings)
        by_seeds.setdefault(seeds, []).append(allocation.needs.run.id)
    for seeds, ids in by_seeds.items():
        yield f"{command} --only {','.join(map(str, ids))} --seeds {seeds}"


def budget_json(allocations: Sequence[Allocation], work: RemainingWork, hours: float) -> str:
    """Return what to train within the GPU-hours as JSON."""
    return to_json(
        {
            "profile": work.profile,
            "note": work.note,
            "budget_gpu_hours": hours,
            "timed": work.timed,
            "chosen": [
                {
                    "run_id": allocation.needs.run.id,
                    "replicates": [training.replicate for training in allocation.trainings],
                    "settles": [judged.cell.name for judged in allocation.resolved],
                    "gpu_hours": allocation.hours,
                    "price": allocation.hours * work.prices.gpu_hour,
                }
                for allocation in allocations
            ],
        }
    )
