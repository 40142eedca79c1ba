"""Merging a run's settings with the defaults, the profile's changes and `--set`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aol.config import TrainConfig
from orchestrator.spec.experiment import Resources
from orchestrator.spec.source import Loc, Mistake, Place, parse_yaml
from orchestrator.spec.validation import dotted_names, suggest

SETTINGS = [*dotted_names(TrainConfig), *(f"resources.{name}" for name in Resources.model_fields)]


class MergedSettings:
    """Nested settings merged from several sources, with the place of every value."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self._places: dict[Loc, Place] = {}  # in the order of merging

    def merge(
        self, settings: Mapping[str, Any], where: Callable[[Loc], Place], *, partial: bool = False
    ) -> None:
        """Merge settings over those so far; `where` returns the place of a path in them.

        A `partial` source only changes values: the place of a mapping, and thus of a field that is
        missing in it, stays where it was.
        """

        def put(target: dict[str, Any], source: Mapping[str, Any], prefix: Loc) -> None:
            if not partial or prefix not in self._places:
                self._places[prefix] = where(prefix)
            for key, value in source.items():
                loc = (*prefix, key)
                if isinstance(value, Mapping):
                    if not isinstance(target.get(key), dict):
                        target[key] = {}
                    put(target[key], value, loc)
                else:
                    target[key] = value
                    self._places.pop(loc, None)  # to the end
                    self._places[loc] = where(loc)

        put(self.data, settings, ())

    def set(self, name: str, value: Any) -> None:
        """Merge the value of a `--set` by its dotted name."""
        section, _, field = name.rpartition(".")
        settings = {section: {field: value}} if section else {field: value}
        self.merge(settings, lambda _: set_option(name), partial=True)

    def place(self, loc: Loc) -> Place:
        """Return the place of the value at `loc`, or of the innermost mapping around it.

        Raises: KeyError if nothing was merged yet.
        """
        while loc and loc not in self._places:
            loc = loc[:-1]
        return self._places[loc]

    def last_set(self, *candidates: Loc) -> Loc:
        """Return which of these values was merged last; the first if none was."""
        merged = [loc for loc in self._places if loc in candidates]
        return merged[-1] if merged else candidates[0]


def read_overrides(texts: Iterable[str]) -> tuple[dict[str, Any], list[Mistake]]:
    """Return the values of `key=value` texts by dotted name, and the mistakes in the others."""
    values: dict[str, Any] = {}
    mistakes = []
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError("write key=value, for example epochs=10")
            if name not in SETTINGS:
                raise ValueError(f"unknown field{suggest(name, SETTINGS)}")
            values[name] = parse_yaml(value)
        except ValueError as error:
            mistakes.append(Mistake(set_option(text), str(error)))
    return values, mistakes


def set_option(text: str) -> Place:
    """Return the place of a `--set`."""
    return Place(f"--set {text}")


def is_custom(overrides: Iterable[str]) -> bool:
    """Return whether overrides change more than the resources of runs."""
    return any(not text.startswith("resources.") for text in overrides)
