"""Loading the YAML file: its profiles as experiments, or every mistake in it at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.checks import check_sections
from orchestrator.spec.experiment import CUSTOM, Experiment, RunSpec
from orchestrator.spec.overrides import MergedSettings, is_custom, read_overrides
from orchestrator.spec.source import MAX_MISTAKES, Mistake, read_yaml, spec_error
from orchestrator.spec.validation import validate
from orchestrator.spec.widths import MergedRun, check_widths

RUN_FIELDS = ("id", "name", "resources")  # of a run's entry; the other fields are its training
DATASET = (("data",), ("data", "name"))  # decide the number of classes
RunMistake = tuple[str, Mistake]  # the run's name in messages, and the mistake


def load_experiment(
    path: Path | str = "experiments.yaml",
    profile: str | None = None,
    settings: Iterable[str] = (),
) -> Experiment:
    """Return the experiment of one profile of a YAML file, with changed settings.

    `profile` is by default the file's own for machines without a GPU, else its first one.
    `settings` are those of `--set`, for example::

        experiment = load_experiment("experiments.yaml", "demo", ["epochs=2", "model.width=1/4"])
        digests = {run.name: run.train.digest() for run in experiment.runs}

    Raises: SpecError with every mistake in the file or in the settings.
    """
    file = SpecFile(Path(path))
    return file.experiment(profile or file.default_profile(has_gpu=False), settings)


class SpecFile:
    """A valid YAML file, from which the profiles are taken."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises: SpecError with every mistake in all its profiles, by line."""
        self.path = path
        self._document = read_yaml(path)
        file, mistakes = check_sections(self._document)
        if file:
            self.file = file
            mistakes += self._mistakes_in_runs()
        unreadable = self._document.unreadable
        mistakes = [mistake for mistake in mistakes if mistake.place.line not in unreadable]
        if any("did you mean `defaults`" in mistake.text for mistake in mistakes):
            mistakes = [one for one in mistakes if not one.text.endswith(": is missing")]
        if mistakes or self._document.mistakes:
            raise spec_error([*self._document.mistakes, *mistakes])

    @property
    def profiles(self) -> tuple[str, ...]:
        """The names of the profiles."""
        return tuple(self.file.profiles)

    def default_profile(self, *, has_gpu: bool) -> str:
        """Return the profile that fits the cluster, or the file's first one."""
        default = self.file.default_profile
        return (default.gpu if has_gpu else default.cpu) or self.profiles[0]

    def experiment(self, profile: str, overrides: Iterable[str] = ()) -> Experiment:
        """Return the experiment of one profile, with `key=value` overrides in all its runs.

        With overrides that can change a number its profile is "custom".

        Raises: SpecError with every mistake in the overrides.
        """
        if profile not in self.file.profiles:
            there_are = ", ".join(self.profiles)
            raise SpecError([f"{self.path}: no profile {profile!r}, only {there_are}"])
        settings = self.file.profiles[profile]
        overrides = tuple(overrides)
        name, note = profile, settings.note
        if is_custom(overrides):
            name = CUSTOM
            note = f"custom: {profile} with {', '.join(overrides)}; not comparable with the paper"
        values, mistakes = read_overrides(overrides)
        runs, found = self._merge(profile, name, values)
        mistakes += _group(found)
        if mistakes:
            raise spec_error(mistakes)
        return Experiment(
            path=self.path,
            name=self.file.name,
            source=self.file.source,
            profile=name,
            note=note,
            comparable=settings.comparable,
            checkpoint_seconds=settings.checkpoint_seconds,
            data_root=self.file.data_root,
            runs=tuple(runs),
            columns=self.file.columns,
            measurements=self.file.measurements,
            tables=self.file.tables,
            claims=self.file.claims,
            reproduction=self.file.reproduction,
            prices=self.file.prices,
            base=profile,
            overrides=overrides,
        )

    def _mistakes_in_runs(self) -> list[Mistake]:
        """Return the mistakes in the runs of all profiles.

        It stops after the profile that exceeds `MAX_MISTAKES`.
        """
        found: list[RunMistake] = []
        for name in self.profiles:
            if len(found) <= MAX_MISTAKES:
                found += self._merge(name, name, {})[1]
        return _group(found)

    def _merge(
        self, profile: str, name: str, overrides: Mapping[str, Any]
    ) -> tuple[list[RunSpec], list[RunMistake]]:
        """Return the runs of a profile under a name, and their mistakes.

        After more than `MAX_MISTAKES` the other runs are left out.
        """
        runs, merged = [], []
        mistakes: list[RunMistake] = []
        for index in range(len(self.file.runs)):
            if len(mistakes) > MAX_MISTAKES:
                break
            run_name = self.file.run_name(index)
            settings = self._settings(index, profile)
            for field, value in overrides.items():
                settings.set(field, value)
            own = {key: settings.data[key] for key in RUN_FIELDS if key in settings.data}
            train = {key: settings.data[key] for key in settings.data if key not in RUN_FIELDS}
            run, errors = validate(RunSpec, own | {"train": train, "profile": name})
            errors = [(loc[1:] if loc[0] == "train" else loc, text) for loc, text in errors]
            for loc, text in errors:
                message = f"{'.'.join(map(str, loc))}: {text}"
                mistakes.append((run_name, Mistake(settings.place(loc), message)))
            if run:
                runs.append(run)
                if not any(loc[0] == "model" or loc in DATASET for loc, _ in errors):
                    merged.append(MergedRun(run_name, run.train, settings))
        return runs, [*mistakes, *check_widths(merged, overrides)]

    def _settings(self, index: int, profile: str) -> MergedSettings:
        """Merge the defaults, a run's entry and the changes of its profile."""
        entry = self.file.runs[index]
        settings = MergedSettings()

        def merge(source: dict[str, Any], *loc: str | int, partial: bool = False) -> None:
            settings.merge(
                source, lambda keys: self._document.where((*loc, *keys)), partial=partial
            )

        merge(self.file.defaults, "defaults")
        merge(entry, "runs", index)
        for i, change in enumerate(self.file.profiles[profile].changes):
            if change.runs is None or entry.get("id") in change.runs:
                merge(change.set, "profiles", profile, "changes", i, "set", partial=True)
        return settings


def _group(found: Iterable[RunMistake]) -> list[Mistake]:
    """Return one mistake for all runs and profiles that share it."""
    names: dict[Mistake, dict[str, None]] = {}
    for name, mistake in found:
        names.setdefault(mistake, {})[name] = None
    return [
        Mistake(mistake.place, f"{_name_runs(list(runs))}: {mistake.text}")
        for mistake, runs in names.items()
    ]


def _name_runs(names: list[str]) -> str:
    if len(names) > 5:
        return f"{len(names)} runs"
    return f"run{'s' if len(names) > 1 else ''} {', '.join(names)}"
