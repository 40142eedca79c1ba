"""Checking the sections of the YAML file against each other."""

from collections.abc import Iterable, Iterator

from orchestrator.formatting import pluralize
from orchestrator.spec.claims import KINDS, claim_mistakes
from orchestrator.spec.experiment import CUSTOM, unknown_ids
from orchestrator.spec.fields import FILE_NAME
from orchestrator.spec.schema import File
from orchestrator.spec.source import Document, Loc, Mistake
from orchestrator.spec.validation import FieldError, suggest, validate

RESERVED = (CUSTOM, "logs", "ray")  # for runs with --set, for other folders of the results


def check_sections(document: Document) -> tuple[File | None, list[Mistake]]:
    """Return the file with wrong parts replaced, and all mistakes outside its runs' settings.

    Without usable `runs` or `profiles` there is no file.
    """
    file, errors = validate(File, document.data)
    found = [(loc, f"{'.'.join(map(str, loc))}: {text}") for loc, text in errors]
    if file is None:
        wrong = {loc[0] for loc, _ in errors}
        rest = {key: value for key, value in document.data.items() if key not in wrong}
        file, _ = validate(File, rest)
    if file:
        checks = (
            _check_repeats(document, file),
            _check_tables(file),
            _check_claims(file, dict(errors)),
            _check_profiles(file),
        )
        found += [one for check in checks for one in check if one[0] not in dict(errors)]
    return file, [Mistake(document.where(loc), text) for loc, text in found]


def _check_repeats(document: Document, file: File) -> Iterator[FieldError]:
    names: dict[Loc, str] = {}
    for i in range(len(file.runs)):
        names["runs", i, "id"] = f"run {file.run_name(i)}"
    for i, column in enumerate(file.columns):
        names["columns", i, "title"] = f"column {column.title!r}"
    for i, table in enumerate(file.tables):
        names["tables", i, "id"] = f"table {table.id!r}"
        for j, row in enumerate(table.rows):
            names["tables", i, "rows", j, "label"] = f"table {table.id}: row {row.label!r}"
    for i, claim in enumerate(file.claims):
        names["claims", i, "id"] = f"claim {claim.id!r}"
    first: dict[tuple[Loc, str], Loc] = {}
    for loc, name in names.items():
        group = (loc[:-2], name)
        if first.setdefault(group, loc) != loc:
            yield loc, f"{name} is already defined at {document.where(first[group])}"


def _check_tables(file: File) -> Iterator[FieldError]:
    titles = [column.title for column in file.columns]
    for i, table in enumerate(file.tables):
        for j, row in enumerate(table.rows):
            loc = ("tables", i, "rows", j)
            if file.unknown([row.run]):
                yield (*loc, "run"), f"table {table.id}: there is no run {row.run}"
            if titles and len(row.published) != len(titles):
                values = pluralize(len(row.published), "published value")
                columns = pluralize(len(titles), "column")
                text = f"table {table.id}: run {row.run}: {values} for {columns}"
                yield (*loc, "published"), text
            for title in row.margins:
                if title not in titles:
                    text = f"table {table.id}: no column {title!r}{suggest(title, titles)}"
                    yield (*loc, "margins", title), text


def _check_claims(file: File, wrong: Iterable[Loc]) -> Iterator[FieldError]:
    """Check the claims without a wrong field."""
    titles = [column.title for column in file.columns]
    for i, claim in enumerate(file.claims):
        if any(loc[:2] == ("claims", i) for loc in wrong):
            continue
        if len(claim.relations) != 1:
            found = " and ".join(claim.relations) or "none"
            text = f"needs one of {', '.join(KINDS)}; found {found}"
            yield ("claims", i), f"claim {claim.id}: {text}"
            continue
        loc = ("claims", i, claim.kind)
        if unknown := file.unknown(claim.runs_among(())):
            yield loc, unknown_ids(f"claim {claim.id}", unknown, file.run_ids)
        for name, text in claim_mistakes(claim, titles):
            yield (*loc, name), f"claim {claim.id}: {text}"


def _check_profiles(file: File) -> Iterator[FieldError]:
    for name, profile in file.profiles.items():
        if not FILE_NAME.fullmatch(name) or name in RESERVED:
            reason = "is reserved" if name in RESERVED else "cannot name a folder"
            rule = "use letters, digits, - and _, but not custom, logs or ray"
            yield ("profiles", name), f"profile {name!r} {reason}; {rule}"
        for i, change in enumerate(profile.changes):
            if unknown := file.unknown(change.runs or ()):
                loc = ("profiles", name, "changes", i, "runs")
                yield loc, unknown_ids(f"profile {name}", unknown, file.run_ids)
    for cluster, name in file.default_profile:
        if name and name not in file.profiles:
            hint = suggest(name, list(file.profiles))
            yield ("default_profile", cluster), f"default_profile: unknown profile {name!r}{hint}"
    if "id" in file.defaults:
        yield ("defaults", "id"), "defaults.id: every run has its own ID"
