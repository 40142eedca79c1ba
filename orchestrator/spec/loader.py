"""The YAML file of experiments: its profiles as experiments, or every mistake in it at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.checks import Fitted, RunMistake, misfits, read_sections
from orchestrator.spec.experiment import CUSTOM, Experiment, RunSpec
from orchestrator.spec.overrides import RUN_FIELDS, Layers, is_custom, lay_override, read_overrides
from orchestrator.spec.source import Mistake, read, spec_error
from orchestrator.spec.validation import validate

MISSING = ": is missing"  # said of what the defaults would have given
UNFIT = (("data",), ("data", "name"))  # a mistake there leaves open how many classes there are


class SpecFile:
    """A parsed file from which the profiles are taken."""

    def __init__(self, path: Path) -> None:
        """Raises: SpecError with every mistake of the file, in all its profiles, by line."""
        self.document = read(path)
        file, mistakes = read_sections(self.document)
        if file:
            self.file = file
            mistakes += _grouped(
                mistake for profile in self.profiles for mistake in self._merged(profile, {})[1]
            )
        unreadable = self.document.unreadable
        mistakes = [mistake for mistake in mistakes if mistake.place.line not in unreadable]
        if any("did you mean `defaults`" in mistake.text for mistake in mistakes):
            mistakes = [one for one in mistakes if not one.text.endswith(MISSING)]
        if mistakes or self.document.mistakes:
            raise spec_error([*self.document.mistakes, *mistakes])

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

        Raises: SpecError with every mistake of the overrides.
        """
        if profile not in self.file.profiles:
            there_are = ", ".join(self.profiles)
            raise SpecError([f"{self.document.path}: no profile {profile!r}, only {there_are}"])
        chosen = self.file.profiles[profile]
        overrides = tuple(overrides)
        name, note = profile, chosen.note
        if is_custom(overrides):
            name = CUSTOM
            note = f"custom: {profile} with {', '.join(overrides)}; not comparable with the paper"
        return Experiment(
            path=self.document.path,
            name=self.file.name,
            source=self.file.source,
            profile=name,
            note=note,
            checkpoint_seconds=chosen.checkpoint_seconds,
            data_root=self.file.data_root,
            runs=tuple(
                run.model_copy(update={"profile": name}) for run in self._runs(profile, overrides)
            ),
            columns=tuple(self.file.columns),
            tables=tuple(self.file.tables),
            reproduction=self.file.reproduction,
            prices=self.file.prices,
            base=profile,
            overrides=overrides,
        )

    def _runs(self, profile: str, overrides: tuple[str, ...]) -> list[RunSpec]:
        values, mistakes = read_overrides(overrides)
        runs, found = self._merged(profile, values)
        mistakes += _grouped(found)
        if mistakes:
            raise spec_error(mistakes)
        return runs

    def _merged(
        self, profile: str, overrides: Mapping[str, Any]
    ) -> tuple[list[RunSpec], list[RunMistake]]:
        """The runs of a profile that can be made, and what is wrong with these and others."""
        runs, mistakes, fitted = [], [], []
        for index in range(len(self.file.runs)):
            name = self.file.run_name(index)
            layers = self._layers(index, profile)
            for dotted, value in overrides.items():
                lay_override(layers, dotted, value)
            run, found = validate(RunSpec, _as_run(layers.data))
            paths = [(keys[1:] if keys[:1] == ("train",) else keys, text) for keys, text in found]
            mistakes += [
                (name, Mistake(layers.origin(path), f"{'.'.join(map(str, path))}: {text}"))
                for path, text in paths
            ]
            if run:
                runs.append(run)
                if not any(path[:1] == ("model",) or path in UNFIT for path, _ in paths):
                    fitted.append(Fitted(name, run.train, layers))
        return runs, mistakes + misfits(fitted, overrides)

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


def _as_run(settings: dict[str, Any]) -> dict[str, Any]:
    """A merged entry in the shape of `RunSpec`: what is not the run's own is its training."""
    own = {name: value for name, value in settings.items() if name in RUN_FIELDS}
    rest = {name: value for name, value in settings.items() if name not in RUN_FIELDS}
    return own | {"train": rest}


def _grouped(mistakes: Iterable[RunMistake]) -> list[Mistake]:
    """One mistake, however many runs and profiles share it."""
    runs: dict[Mistake, dict[str, None]] = {}
    for run_id, mistake in mistakes:
        runs.setdefault(mistake, {})[run_id] = None
    return [
        Mistake(mistake.place, f"{_named(list(ids))}: {mistake.text}")
        for mistake, ids in runs.items()
    ]


def _named(ids: list[str]) -> str:
    if len(ids) == 1:
        return f"run {ids[0]}"
    return f"runs {', '.join(ids)}" if len(ids) < 6 else f"{len(ids)} runs"
