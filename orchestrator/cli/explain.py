"""`explain`: print the runs behind a cell and the commands that reproduce them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from aol.catalog import DATASETS
from aol.config import from_dict
from aol.provenance import UNKNOWN
from aol.text import printable, printable_lines
from orchestrator.analysis import explain as analysis
from orchestrator.analysis.claims import (
    JudgedClaim,
    claim_record,
    describe_evidence,
    describe_step,
)
from orchestrator.analysis.explain import CellExplanation, Origin
from orchestrator.analysis.invariants import certificate_violations
from orchestrator.analysis.report import make_report
from orchestrator.cli.options import JsonOption, ProfileOptions, command, store_options
from orchestrator.errors import RequestError
from orchestrator.formatting import MISSING, format_percent, pluralize, to_json, with_note
from orchestrator.masking import mask_secrets
from orchestrator.provenance import package_versions
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Attempt, StoredRun


@command
def explain(
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL",
            help="A name such as CIFAR-10/AOL-Small/CRA 1, a run ID or the ID of a claim.",
        ),
    ],
    options: ProfileOptions,
    column: Annotated[
        str | None, typer.Argument(metavar="COLUMN", help="Only this column, such as 'Std Acc'.")
    ] = None,
    replicate: Annotated[
        int | None, typer.Option(min=0, help="Only this replicate of the run.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Print the run's uncommitted source changes as a patch.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="With --diff: only the changes of this attempt.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the runs behind a cell of the tables, or the evidence for a claim.

    Each run has its provenance and the commands that reproduce it.
    """
    store, experiment = options.open_profile()
    report = make_report(experiment, store)
    for judged in report.claims:
        if judged.claim.id.casefold() == cell.casefold():
            if column or diff or replicate is not None:
                raise RequestError(
                    f"{judged.claim.id} is a claim: leave out the column, --replicate and --diff"
                )
            text = to_json(claim_record(judged)) if as_json else claim_text(judged)
            typer.echo(text if as_json else with_note(experiment.note, text))
            return
    explanations = analysis.explain(
        report,
        store,
        cell,
        column,
        replicate=replicate,
        store_options=store_options(options),
    )
    if diff:
        patch = analysis.common_patch(explanations, attempt)
        typer.echo(printable_lines(patch) if sys.stdout.isatty() else patch, nl=False)
    else:
        typer.echo((explanation_json if as_json else explanation_text)(experiment, explanations))


def claim_text(judged: JudgedClaim) -> str:
    """Return a claim, its verdict, the evidence and every step."""
    claim, found = judged.claim, judged.assessment
    lines = [f"{claim.id}: {claim.text}"]
    lines += [f"  source    {claim.source}"] if claim.source else []
    lines += [f"  verdict   {judged.verdict}", f"  evidence  {describe_evidence(judged)}"]
    lines += [f"  paper     {judged.published}"] if judged.published else []
    if found:
        lines.append("  steps, each claimed to be positive:")
        lines += [f"    {describe_step(step, found.basis)}" for step in found.steps]
    return "\n".join(lines)


def explanation_json(experiment: Experiment, explanations: Sequence[CellExplanation]) -> str:
    """Return the cells with their runs, without the patches."""
    return to_json(
        [
            {
                "profile": experiment.profile,
                "note": experiment.note,
                "cell": one.title,
                "said": one.verdict,
                **one.record,
                "runs": [_origin_record(origin) for origin in one.origins],
            }
            for one in explanations
        ]
    )


def explanation_text(experiment: Experiment, explanations: Sequence[CellExplanation]) -> str:
    """Return the verdicts of the cells, grouped by run, and the facts about each of its seeds."""
    by_run: dict[int, list[CellExplanation]] = {}
    for one in explanations:
        by_run.setdefault(one.record["run_id"], []).append(one)
    return with_note(experiment.note, "\n\n".join(map(_run_text, by_run.values())))


def count_changed_lines(patch: str) -> int:
    """Return the number of lines that a patch adds or removes."""
    lines = patch.splitlines()
    return sum(line[:1] in ("+", "-") and line[:3] not in ("+++", "---") for line in lines)


def _origin_record(origin: Origin) -> dict[str, Any]:
    record: dict[str, Any] = asdict(origin)
    run, parts = record.pop("run"), record.pop("parts")
    for attempt in record["attempts"]:
        attempt["changed_lines"] = _changed_lines(attempt.pop("git_diff"))
    record["parts"] = [
        {"epochs": [part["before"] + 1, part["last"]], "attempt": part["number"]} for part in parts
    ]
    last = record["attempts"][-1] if record["attempts"] else {}
    record["changed_lines"] = last.get("changed_lines")
    return {**record, **run}


def _changed_lines(patch: str | None) -> int | None:
    return count_changed_lines(patch) if patch else None


def _run_text(cells: Sequence[CellExplanation]) -> str:
    verdicts = "\n".join(f"{one.title}\n  {one.verdict}" for one in cells)
    columns = [one.record["column"] for one in cells]
    by_seed = zip(*(one.origins for one in cells), strict=True)
    seeds = [_seed_text(dict(zip(columns, origins, strict=True))) for origins in by_seed]
    return "\n\n".join([verdicts, *seeds])


def _seed_text(origins: Mapping[str, Origin]) -> str:
    """Return the value of a seed in each column, its facts and its commands."""
    origin = next(iter(origins.values()))
    run = origin.run
    facts = [*((title, _value(one)) for title, one in origins.items()), *_facts(origin)]
    width = max(len("certificate"), *(len(title) for title, _ in facts)) + 2
    return "\n".join(
        [
            f"  run {run.run_id} {run.name}, seed {run.seed} (replicate {origin.replicate})",
            *(f"    {title:<{width}}{printable(mask_secrets(text))}" for title, text in facts),
            "    to reproduce it:" if run.started_at else "    to train it:",
            *(f"      {command}" for command in origin.commands),
        ]
    )


def _value(origin: Origin) -> str:
    if origin.value is None:
        return f"{MISSING} (not finished)"
    if origin.from_margins is None:
        return f"{format_percent(origin.value)} % (no margins to recompute it from)"
    return (
        f"{format_percent(origin.value)} % ({format_percent(origin.from_margins)} % recomputed "
        "from the margins)"
    )


def _facts(origin: Origin) -> Iterator[tuple[str, str]]:
    """Yield the facts about a seed that do not depend on the column."""
    run = origin.run
    reason = f": {run.error.strip().splitlines()[-1]}" if run.error else ""
    yield "state", f"{run.status}, {run.epoch} of {pluralize(run.epochs, 'epoch')}{reason}"
    yield "key", f"{run.key}, profile {run.profile}"
    if run.started_at is None:
        return
    yield "certificate", _certificate(run)
    yield "checkpoint", ", ".join(item.path for item in run.checkpoints) or "none kept"
    for part in origin.parts:
        attempt, where = part.attempt, f"{part.epochs}: " if len(origin.parts) > 1 else ""
        yield "commit", where + _commit(attempt)
        yield "packages", where + _packages(attempt.packages or {})
        yield "hardware", where + _hardware(attempt)
    yield "data", _data(run)
    yield "trained", f"{run.started_at} to {run.finished_at or MISSING}"
    for number, attempt in enumerate(origin.attempts, start=1):
        start = f"from epoch {attempt.from_epoch} at {attempt.started_at} by {attempt.driver}"
        place = f" on {attempt.host}" if attempt.host else ""
        yield f"attempt {number}", f"{start}{place}: {attempt.outcome or 'running'}"
    yield "MLflow", run.mlflow_run_id or MISSING


def _certificate(run: StoredRun) -> str:
    if run.certificate is None:
        return "none"
    violations = certificate_violations(run.certificate, from_dict(dict(run.config)).model)
    text = "; ".join(violations)
    arithmetic = run.certificate.get("arithmetic", MISSING)
    return f"{f'UNSOUND: {text}' if text else 'sound'}, certified in {arithmetic}"


def _hardware(attempt: Attempt) -> str:
    driver = f"driver {attempt.gpu_driver}" if attempt.gpu_driver else None
    return ", ".join(filter(None, (attempt.host, attempt.device, driver))) or MISSING


def _commit(attempt: Attempt) -> str:
    commit = attempt.git_commit
    if commit is None and attempt.packages is None:
        return "not recorded"
    if commit is None:
        return "unknown (not run from a Git checkout)"
    if commit == UNKNOWN:
        return "unknown (git could not read the checkout, or not in time)"
    if attempt.git_diff is not None:
        lines = pluralize(count_changed_lines(attempt.git_diff), "changed line")
        return f"{commit} ({lines}; print them with --diff)"
    return (
        f"{commit} (the changes were too large to store)" if commit.endswith("+changes") else commit
    )


def _packages(packages: Mapping[str, str]) -> str:
    here = package_versions()
    versions = [
        f"{name} {version}" + (f" (here {here[name]})" if _differs(version, here.get(name)) else "")
        for name, version in packages.items()
    ]
    return ", ".join(versions) or MISSING


def _differs(version: str, here: str | None) -> bool:
    """Return whether another version is installed here; its build (`+cu130`) does not count."""
    return here is not None and here.partition("+")[0] != version.partition("+")[0]


def _data(run: StoredRun) -> str:
    name = run.config["data"]["name"]
    expected = DATASETS[name].fingerprint
    agrees = "as expected" if run.data_fingerprint == expected else f"instead of {expected}"
    return f"{name}, fingerprint {run.data_fingerprint} {agrees}"
