"""Settings laid over each other, up to `--set` of the command line; each knows its place."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aol.config import TrainConfig
from orchestrator.spec.experiment import Resources, RunSpec
from orchestrator.spec.source import Keys, Mistake, Place, parse_number, read_value
from orchestrator.spec.validation import dotted_names, suggest, takes

RUN_FIELDS = ("id", "name", "resources")  # of a run's entry; the other fields are its training
SETTINGS = [*dotted_names(TrainConfig), *(f"resources.{name}" for name in Resources.model_fields)]


class Layers:
    """Settings laid over each other; remembers where each value came from."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self._origins: dict[Keys, Place] = {}  # in the order they were laid

    def lay(
        self, settings: Mapping[str, Any], where: Callable[[Keys], Place], *, home: bool = True
    ) -> None:
        """Put `settings` over what is there; `where` names the place of a path in them.

        A layer that is not `home` changes values only: what is missing is missing elsewhere.
        """
        self._lay(self.data, settings, (), where, home)

    def origin(self, keys: Keys) -> Place:
        """Where the value at `keys`, or the innermost mapping around it, came from.

        Raises: KeyError if nothing was laid yet.
        """
        while keys and keys not in self._origins:
            keys = keys[:-1]
        return self._origins[keys]

    def latest(self, *candidates: Keys) -> Keys:
        """The one of these values that was laid last; the first if none was."""
        laid = [keys for keys in self._origins if keys in candidates]
        return laid[-1] if laid else candidates[0]

    def _lay(
        self,
        target: dict[str, Any],
        settings: Mapping[str, Any],
        prefix: Keys,
        where: Callable[[Keys], Place],
        home: bool,
    ) -> None:
        if home or prefix not in self._origins:
            self._origins[prefix] = where(prefix)
        for key, value in settings.items():
            keys = (*prefix, str(key))
            if isinstance(value, Mapping):
                inner = target.get(key)
                target[key] = dict(inner) if isinstance(inner, Mapping) else {}
                self._lay(target[key], value, keys, where, home)
            else:
                target[key] = numbers(value) if _numeric(keys) else value
                self._origins.pop(keys, None)  # to the end
                self._origins[keys] = where(keys)


def _numeric(keys: Keys) -> bool:
    """Whether numbers stand there that may be written as in the paper."""
    path = keys if keys[0] in RUN_FIELDS else ("train", *keys)
    return keys != ("id",) and any(takes(RunSpec, path, kind) for kind in (int, float))


def numbers(value: Any) -> Any:
    """The value with numbers written as in the paper as floats, also inside lists."""
    return [numbers(item) for item in value] if isinstance(value, list) else parse_number(value)


def read_overrides(texts: Iterable[str]) -> tuple[dict[str, Any], list[Mistake]]:
    """`key=value` texts as values by dotted name, and what is wrong with the others."""
    values: dict[str, Any] = {}
    mistakes = []
    for text in texts:
        name, equals, value = text.partition("=")
        problem = None
        if not equals:
            problem = "write key=value, for example epochs=10"
        elif name not in SETTINGS:
            problem = f"unknown field{suggest(name, SETTINGS)}"
        else:
            try:
                values[name] = read_value(value)
            except ValueError as error:
                problem = str(error)
        if problem:
            mistakes.append(Mistake(option(text), problem))
    return values, mistakes


def lay_override(layers: Layers, name: str, value: Any) -> None:
    """Put the value of one `--set` over everything."""
    layers.lay(_nested(name, value), lambda _: option(name), home=False)


def option(text: str) -> Place:
    """The place of a `--set`."""
    return Place(f"--set {text}")


def is_custom(overrides: Iterable[str]) -> bool:
    """Whether overrides change more than where runs are placed."""
    return any(not text.startswith("resources.") for text in overrides)


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    outer, dot, inner = dotted.partition(".")
    return {outer: _nested(inner, value) if dot else value}
