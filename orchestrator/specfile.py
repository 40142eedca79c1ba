"""The YAML file of experiments: its profiles as experiments, or every mistake in it at once."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, FiniteFloat

from aol.config import TrainConfig
from orchestrator.document import Document, SpecError, read, read_value
from orchestrator.spec import (
    CUSTOM,
    Column,
    Experiment,
    Resources,
    RunSpec,
    Strict,
    Table,
    parse_ids,
    unknown_ids,
)
from orchestrator.validation import Layers, dotted_names, nearest, validate

PROFILE_NAME = re.compile(r"[A-Za-z0-9_-]+")
RUN_FIELDS = ("id", "name", "resources")  # of a run's entry; the other fields are its training

RunProblem = tuple[str, str, str]  # place, run ID, what is wrong
SETTINGS = [*dotted_names(TrainConfig), *(f"resources.{name}" for name in Resources.model_fields)]


class Change(Strict):
    """Settings that a profile lays over some runs, or over all."""

    runs: Annotated[tuple[int, ...] | None, BeforeValidator(parse_ids)] = None
    set: dict[str, Any]


class Profile(Strict):
    """A way to train all runs: the paper's own, or a quick one marked as such by its note."""

    note: str = ""
    checkpoint_seconds: Annotated[FiniteFloat, Field(gt=0)] = 60.0
    changes: list[Change] = Field(default_factory=list)


MaybeEmpty = Annotated[Profile, BeforeValidator(lambda given: {} if given is None else given)]


class File(Strict):
    """The YAML file as it is written; its runs are checked once they are merged."""

    name: Annotated[str, Field(min_length=1)]
    source: str = ""
    data_root: Path | None = None
    default_profile: dict[str, str] = Field(default_factory=dict)
    defaults: dict[str, Any] = Field(default_factory=dict)
    runs: Annotated[list[dict[str, Any]], Field(min_length=1)]
    profiles: Annotated[dict[str, MaybeEmpty], Field(min_length=1)]
    columns: list[Column] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)


class SpecFile:
    """A parsed file from which the profiles are taken."""

    def __init__(self, path: Path) -> None:
        """Raises: SpecError with every mistake of the file, in all its profiles."""
        self.document = read(path)
        file, problems = validated_file(self.document)
        if file:
            self.file = file
            problems += self._run_problems()
        if problems or not file:
            raise SpecError(problems)

    @property
    def profiles(self) -> tuple[str, ...]:
        """The names of the profiles."""
        return tuple(self.file.profiles)

    def default_profile(self, *, has_gpu: bool) -> str:
        """The profile that fits the cluster, or the file's first one."""
        return self.file.default_profile.get("gpu" if has_gpu else "cpu", self.profiles[0])

    def experiment(self, profile: str, overrides: Iterable[str] = ()) -> Experiment:
        """The runs of one profile, with `key=value` overrides laid over all of them.

        Overrides that can change a number make another experiment of it: the profile "custom".

        Raises: SpecError.
        """
        if profile not in self.file.profiles:
            there_are = ", ".join(self.profiles)
            raise SpecError([f"{self.document.path}: no profile {profile!r}, only {there_are}"])
        chosen = self.file.profiles[profile]
        overrides = tuple(overrides)
        note = chosen.note
        if _is_custom(overrides):
            note = f"custom: {profile} with {', '.join(overrides)}; not comparable with the paper"
        return Experiment(
            path=self.document.path,
            name=self.file.name,
            source=self.file.source,
            profile=CUSTOM if _is_custom(overrides) else profile,
            note=note,
            checkpoint_seconds=chosen.checkpoint_seconds,
            data_root=self.file.data_root,
            runs=self._runs(profile, overrides),
            columns=tuple(self.file.columns),
            tables=tuple(self.file.tables),
        )

    def _runs(self, profile: str, overrides: tuple[str, ...]) -> tuple[RunSpec, ...]:
        values = _parsed_overrides(overrides)
        made = [self._run(index, profile, values) for index in range(len(self.file.runs))]
        problems = [problem for _, found in made for problem in found]
        if problems:
            raise SpecError(_grouped(problems))
        name = CUSTOM if _is_custom(overrides) else profile
        return tuple(run.model_copy(update={"profile": name}) for run, _ in made if run)

    def _run_problems(self) -> list[str]:
        made = [
            self._run(index, profile, {})
            for profile in self.profiles
            for index in range(len(self.file.runs))
        ]
        return _grouped([problem for _, found in made for problem in found])

    def _run(
        self, index: int, profile: str, overrides: dict[str, Any]
    ) -> tuple[RunSpec | None, list[RunProblem]]:
        """A run of a profile, and its mistakes as (place, run ID, what is wrong)."""
        layers = self._layers(index, profile)
        for dotted, value in overrides.items():
            layers.lay(
                _nested(dotted, value),
                lambda keys: f"--set {'.'.join(map(str, keys))}",
                home=False,
            )
        run, found = validate(RunSpec, _as_run(layers.data))
        run_id = str(self.file.runs[index].get("id", f"number {index + 1}"))
        problems = []
        for keys, text in found:
            path = keys[1:] if keys[:1] == ("train",) else keys
            problems.append((layers.origin(path), run_id, f"{'.'.join(map(str, path))}: {text}"))
        return run, problems

    def _layers(self, index: int, profile: str) -> Layers:
        """A run's entry over the defaults, under the changes of its profile."""
        entry = self.file.runs[index]
        layers = Layers()

        def lay(settings: dict[str, Any], *place: str | int, home: bool = True) -> None:
            layers.lay(settings, lambda keys: self.document.where((*place, *keys)), home=home)

        lay(self.file.defaults, "defaults")
        lay(entry, "runs", index)
        for order, change in enumerate(self.file.profiles[profile].changes):
            if change.runs is None or entry.get("id") in change.runs:
                lay(change.set, "profiles", profile, "changes", order, "set", home=False)
        return layers


def validated_file(document: Document) -> tuple[File | None, list[str]]:
    """The file as a model, with the parts that are wrong left out, and what is wrong with it."""
    file, found = validate(File, document.data)
    problems = [
        f"{document.where(keys)}: {'.'.join(map(str, keys))}: {text}" for keys, text in found
    ]
    if file is None:
        wrong = {keys[0] for keys, _ in found}
        rest = {key: value for key, value in document.data.items() if key not in wrong}
        file, _ = validate(File, rest)
    if file:
        problems += _repeated_ids(document, file)
        problems += _bad_tables(document, file)
        problems += _bad_references(document, file)
        problems += _bad_names(document, file)
    return file, problems


def _repeated_ids(document: Document, file: File) -> list[str]:
    first: dict[Any, int] = {}
    problems = []
    for index, run in enumerate(file.runs):
        name = str(run.get("id", f"number {index}"))
        if first.setdefault(name, index) != index:
            earlier = document.where(("runs", first[name]))
            where = document.where(("runs", index, "id"))
            problems.append(f"{where}: run {run['id']}: the ID stands also at {earlier}")
    return problems


def _bad_tables(document: Document, file: File) -> list[str]:
    known = _run_ids(file)
    problems = []
    for number, table in enumerate(file.tables):
        for index, row in enumerate(table.rows):
            where = document.where(("tables", number, "rows", index))
            if row.run not in known:
                problems.append(f"{where}: table {table.id}: there is no run {row.run}")
            if file.columns and len(row.published) != len(file.columns):
                problems.append(
                    f"{where}: table {table.id}: run {row.run}: {len(row.published)} published "
                    f"values for {len(file.columns)} columns"
                )
    return problems


def _run_ids(file: File) -> set[int]:
    return {run["id"] for run in file.runs if isinstance(run.get("id"), int)}


def _bad_references(document: Document, file: File) -> list[str]:
    known = _run_ids(file)
    problems = []
    for name, profile in file.profiles.items():
        for order, change in enumerate(profile.changes):
            if unknown := sorted(set(change.runs or ()) - known):
                where = document.where(("profiles", name, "changes", order, "runs"))
                problems.append(f"{where}: {unknown_ids(f'profile {name}', unknown, known)}")
    for cluster, name in file.default_profile.items():
        where = document.where(("default_profile", cluster))
        if cluster not in ("gpu", "cpu"):
            problems.append(f"{where}: default_profile: got {cluster!r}, allowed: gpu, cpu")
        if name not in file.profiles:
            problems.append(
                f"{where}: default_profile: unknown profile {name!r}"
                f"{nearest(name, list(file.profiles))}"
            )
    return problems


def _bad_names(document: Document, file: File) -> list[str]:
    problems = []
    for name in file.profiles:
        where = document.where(("profiles", name))
        if name == CUSTOM:
            problems.append(f"{where}: the profile name {CUSTOM!r} is taken for --set; use another")
        elif not PROFILE_NAME.fullmatch(name) or name in ("ray", "logs"):
            problems.append(
                f"{where}: profile {name!r} names a folder of the results: use letters, digits, "
                "- and _, not ray or logs"
            )
    if "id" in file.defaults:
        where = document.where(("defaults", "id"))
        problems.append(f"{where}: defaults.id: every run has an ID of its own")
    return problems


def _is_custom(overrides: Iterable[str]) -> bool:
    """Whether overrides change more than where runs are placed."""
    return any(not text.startswith("resources.") for text in overrides)


def _parsed_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as dotted names and values. Raises: SpecError with every bad one."""
    values: dict[str, Any] = {}
    problems = []
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals:
            problems.append(f"--set {text}: write key=value, for example epochs=10")
        elif name not in SETTINGS:
            problems.append(f"--set {text}: unknown field{nearest(name, SETTINGS)}")
        else:
            try:
                values[name] = read_value(value)
            except ValueError as error:
                problems.append(f"--set {text}: {error}")
    if problems:
        raise SpecError(problems)
    return values


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    outer, dot, inner = dotted.partition(".")
    return {outer: _nested(inner, value) if dot else value}


def _as_run(settings: dict[str, Any]) -> dict[str, Any]:
    """A merged entry in the shape of `RunSpec`: what is not the run's own is its training."""
    own = {name: value for name, value in settings.items() if name in RUN_FIELDS}
    rest = {name: value for name, value in settings.items() if name not in RUN_FIELDS}
    return own | {"train": rest}


def _grouped(problems: list[RunProblem]) -> list[str]:
    """One line per mistake, however many runs and profiles share it."""
    runs: dict[tuple[str, str], dict[str, None]] = {}
    for where, run_id, text in problems:
        runs.setdefault((where, text), {})[run_id] = None
    return [f"{where}: {_named(list(ids))}: {text}" for (where, text), ids in runs.items()]


def _named(ids: list[str]) -> str:
    if len(ids) == 1:
        return f"run {ids[0]}"
    return f"runs {', '.join(ids)}" if len(ids) < 6 else f"{len(ids)} runs"
