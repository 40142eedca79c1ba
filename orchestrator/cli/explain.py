"""Commands that answer what somebody asks of the results."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from aol.catalog import DATASETS
from aol.config import from_dict
from orchestrator.analysis.explain import CellExplanation, Origin
from orchestrator.analysis.invariants import certificate_violations
from orchestrator.cli.options import (
    SPEC,
    JsonOption,
    ResultsOption,
    SetOption,
    SpecOption,
    StoreOption,
    TrainedProfileOption,
    app,
    opened_profile,
)
from orchestrator.formatting import MISSING, format_percent, pluralize, to_json, with_note
from orchestrator.provenance import package_versions
from orchestrator.spec.experiment import Experiment
from orchestrator.store import StoredRun


@app.command()
def explain(
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="Like CIFAR-10/AOL-Small/CRA 1, or a run ID.")
    ],
    column: Annotated[
        str | None, typer.Argument(metavar="COLUMN", help="Just this one, like 'Std Acc'.")
    ] = None,
    spec: SpecOption = SPEC,
    profile: TrainedProfileOption = None,
    settings: SetOption = None,
    replicate: Annotated[
        int | None, typer.Option(min=0, help="Just this one of the run's seeds.")
    ] = None,
    results: ResultsOption = None,
    store: StoreOption = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print the patch of the run's source to its commit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print what a cell of the tables rests on, down to the commands that make it again."""
    from orchestrator.analysis import explain as explaining
    from orchestrator.analysis.report import make_report

    opened, experiment = opened_profile(spec, profile, settings, results, store)
    given = {"--results": results and str(results), "--store": store}
    found = explaining.explain(
        make_report(experiment, opened),
        opened,
        cell,
        column,
        replicate=replicate,
        places=[part for pair in given.items() if pair[1] for part in pair if part],
    )
    if diff:
        typer.echo(explaining.patch_of(found), nl=False)
    else:
        typer.echo((explained_json if as_json else explained_text)(experiment, found))


def explained_json(experiment: Experiment, explained: Sequence[CellExplanation]) -> str:
    """All of it but the patches."""
    return to_json(
        [
            {
                "profile": experiment.profile,
                "note": experiment.note,
                "cell": one.title,
                "said": one.verdict,
                **one.record,
                "runs": [_plain(origin) for origin in one.origins],
            }
            for one in explained
        ]
    )


def _plain(origin: Origin) -> dict[str, Any]:
    plain: dict[str, Any] = asdict(origin)
    run, patch = plain.pop("run"), plain.pop("diff")
    plain["changed_lines"] = changed_lines(patch) if patch else None
    return {**plain, **run}


def changed_lines(patch: str) -> int:
    """How many lines a patch adds or removes."""
    lines = patch.splitlines()
    return sum(line[:1] in ("+", "-") and line[:3] not in ("+++", "---") for line in lines)


def explained_text(experiment: Experiment, explained: Sequence[CellExplanation]) -> str:
    """For people: what is said of the cells of a run, then what they rest on, seed by seed."""
    by_run: dict[int, list[CellExplanation]] = {}
    for one in explained:
        by_run.setdefault(one.record["run_id"], []).append(one)
    return with_note(experiment.note, "\n\n".join(map(_told, by_run.values())))


def _told(cells: Sequence[CellExplanation]) -> str:
    """The cells of one run, and each of its seeds once."""
    said = "\n".join(f"{one.title}\n  {one.verdict}" for one in cells)
    seeds = zip(*(one.origins for one in cells), strict=True)
    columns = [one.record["column"] for one in cells]
    described = (_described(dict(zip(columns, origins, strict=True))) for origins in seeds)
    return "\n\n".join([said, *described])


def _described(origins: Mapping[str, Origin]) -> str:
    """A seed: its value in each column, and what all of them rest on."""
    origin = next(iter(origins.values()))
    run = origin.run
    facts = [*((title, _value(one)) for title, one in origins.items()), *_facts(origin)]
    width = max(len("certificate"), *(len(title) for title, _ in facts)) + 2
    again = "to make it again:" if run.started_at else "to train it elsewhere:"
    lines = [
        f"  run {run.run_id} {run.name}, seed {run.seed} (replicate {origin.replicate})",
        *(f"    {title:<{width}}{text}" for title, text in facts),
        f"    {again}",
        *(f"      {command}" for command in origin.commands),
    ]
    return "\n".join(lines)


def _facts(origin: Origin) -> Iterator[tuple[str, str]]:
    """What is known of a seed whichever column is asked for."""
    run = origin.run
    yield "state", f"{run.status}, {run.epoch} of {pluralize(run.epochs, 'epoch')}" + _because(run)
    yield "key", f"{run.key}, profile {run.profile}"
    if run.started_at is None:
        return
    yield "certificate", _certificate(run)
    yield "checkpoint", ", ".join(item.path for item in run.checkpoints) or "none kept"
    yield "commit", _commit(origin)
    yield "packages", _packages(run)
    yield "hardware", ", ".join(filter(None, (run.host, run.device))) or MISSING
    yield "data", _data(run)
    yield "trained", f"{run.started_at} to {run.finished_at or MISSING}"
    for number, attempt in enumerate(origin.attempts, start=1):
        outcome = attempt.outcome or "goes on"
        said = f"from epoch {attempt.from_epoch} at {attempt.started_at} by {attempt.driver}"
        yield f"attempt {number}", f"{said}: {outcome}"
    yield "MLflow", run.mlflow_run_id or MISSING


def _because(run: StoredRun) -> str:
    return f": {run.error.strip().splitlines()[-1]}" if run.error else ""


def _value(origin: Origin) -> str:
    if origin.value is None:
        return f"{MISSING} (not finished)"
    if origin.from_margins is None:
        return f"{format_percent(origin.value)} %, and no margins to derive it from"
    return (
        f"{format_percent(origin.value)} % (its margins give {format_percent(origin.from_margins)})"
    )


def _certificate(run: StoredRun) -> str:
    if run.certificate is None:
        return "none"
    found = "; ".join(certificate_violations(run.certificate, from_dict(dict(run.config)).model))
    arithmetic = run.certificate.get("arithmetic", MISSING)
    return f"{f'UNSOUND: {found}' if found else 'sound'}, certified in {arithmetic}"


def _commit(origin: Origin) -> str:
    commit = origin.run.git_commit
    if commit is None:
        return "unknown: the program was not run from a checkout"
    if origin.diff is not None:
        lines = pluralize(changed_lines(origin.diff), "line")
        return f"{commit} ({lines} changed, --diff prints them)"
    return f"{commit} (the changes were not kept)" if commit.endswith("+changes") else commit


def _packages(run: StoredRun) -> str:
    now = package_versions()
    named = [
        f"{name} {version}" + (f" (here {now[name]})" if now.get(name, version) != version else "")
        for name, version in (run.packages or {}).items()
    ]
    return ", ".join(named) or MISSING


def _data(run: StoredRun) -> str:
    name = run.config["data"]["name"]
    known = DATASETS[name].fingerprint
    agrees = "as it should be" if run.data_fingerprint == known else f"and should be {known}"
    return f"{name}, fingerprint {run.data_fingerprint} {agrees}"
