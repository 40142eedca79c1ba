"""Pydantic's verdict on the user's input, as lines a person can act on."""

import copy
import dataclasses
import difflib
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.spec.source import Keys

Model = TypeVar("Model", bound=BaseModel)
Problem = tuple[Keys, str]

TYPE_NAMES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number below 2**63",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "dataclass_type": "a mapping",
    "path_type": "a path",
}
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
MISSING = {"missing", "missing_keyword_only_argument", "missing_argument"}


def validate(model: type[Model], data: Mapping[str, Any]) -> tuple[Model | None, list[Problem]]:
    """The validated model and every problem with its path.

    A wrong value hides the checks that come after it. So it is replaced by a harmless one and
    the rest is validated again, until nothing new is found; the model returned beside problems
    is made with these replacements, None where none would do.
    """
    problems: list[Problem] = list(_misplaced_booleans(model, data))
    mended = _mended(model, data, problems)
    while True:
        try:
            return model.model_validate(mended), problems
        except ValidationError as error:
            found = [one for detail in error.errors() for one in _problems(model, detail)]
        fresh = [one for one in found if not _known(one[0], problems)]
        if not fresh:
            return None, problems
        problems += fresh
        mended = _mended(model, mended, fresh)


def suggest(word: str, allowed: list[str]) -> str:
    """What to say about an unknown word: the closest allowed one, and all of them."""
    close = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    close = close or [name for name in allowed if name.split(".")[-1] == word][:1]
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{hint} (allowed: {', '.join(allowed)})"


def dotted_names(annotation: Any) -> list[str]:
    """The names of all values below a model or dataclass: `model.kind`, `epochs`, ..."""
    names = []
    for name in _names(annotation):
        inner = dotted_names(_descend(annotation, (name,)))
        names += [f"{name}.{part}" for part in inner] or [name]
    return names


def takes(model: type[BaseModel], keys: Keys, kind: type) -> bool:
    """Whether `kind` may stand at `keys` below the model, or in the list there."""
    return _holds(_descend(model, keys), kind)


def _holds(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_holds(part, kind) for part in get_args(annotation))


def _problems(model: type[BaseModel], detail: ErrorDetails) -> list[Problem]:
    keys = tuple(detail["loc"])
    kind = detail["type"]
    if kind in UNKNOWN:
        allowed = _names(_descend(model, keys[:-1]))
        return [(keys, f"unknown field{suggest(str(keys[-1]), allowed)}")]
    if kind in MISSING:
        return [(keys, "is missing")]
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
        if dataclasses.is_dataclass(_descend(model, keys)):
            parts = [line.partition(": ") for line in text.splitlines()]
            return [((*keys, field), message) for field, _, message in parts]
        return [(keys, f"got {detail['input']!r}: {text}")]
    if kind in ("string_too_short", "too_short"):
        return [(keys, "must not be empty")]
    if kind in TYPE_NAMES:
        return [(keys, f"must be {TYPE_NAMES[kind]}, got {_shown(detail['input'])}")]
    message = detail["msg"].removeprefix("Input should be ")
    return [(keys, f"must be {message}, got {_shown(detail['input'])}")]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _known(keys: Keys, problems: list[Problem]) -> bool:
    """Whether there is a problem already at these keys, above or below them."""
    return any(keys[: len(known)] == known or known[: len(keys)] == keys for known, _ in problems)


def _mended(model: type[BaseModel], data: Mapping[str, Any], problems: list[Problem]) -> Any:
    """A copy of the data with a harmless value, or none, at the path of each problem."""
    mended = copy.deepcopy(dict(data))
    for keys, _ in problems:
        *outer, last = keys
        inner: Any = mended
        for key in outer:
            inner = inner[key]
        if _default(_descend(model, tuple(outer)), last):
            inner.pop(last, None)
        else:
            inner[last] = _harmless(_descend(model, keys))
    return mended


def _default(annotation: Any, name: str | int) -> bool:
    """Whether a field may be left out, or is not a field at all."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(name))
        return field is None or not field.is_required()
    if dataclasses.is_dataclass(annotation):
        own = {field.name: field for field in dataclasses.fields(annotation)}.get(str(name))
        missing = dataclasses.MISSING
        return own is None or own.default is not missing or own.default_factory is not missing
    return False


def _harmless(annotation: Any) -> Any:
    """A value of the type that passes most checks."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    return {int: 1, float: 1.0, str: "?"}.get(annotation, {})


def _misplaced_booleans(annotation: Any, data: Any, keys: Keys = ()) -> list[Problem]:
    """Booleans where a number is due: pydantic would read `true` as 1."""
    if isinstance(data, Mapping):
        pairs = [(key, _descend(annotation, (key,)), value) for key, value in data.items()]
        return [
            problem
            for key, inner, value in pairs
            for problem in _misplaced_booleans(inner, value, (*keys, key))
        ]
    if isinstance(data, list):
        return [
            problem
            for index, value in enumerate(data)
            for problem in _misplaced_booleans(
                _descend(annotation, (index,)), value, (*keys, index)
            )
        ]
    if isinstance(data, bool) and annotation in (int, float):
        return [(keys, f"must be {TYPE_NAMES[annotation.__name__ + '_type']}, got {data}")]
    return []


def _names(annotation: Any) -> list[str]:
    """The field names of a model or dataclass."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return list(annotation.model_fields)
    if dataclasses.is_dataclass(annotation):
        return [field.name for field in dataclasses.fields(annotation)]
    return []


def _descend(annotation: Any, keys: Keys) -> Any:
    """The type of what stands at `keys` below a type, without None and constraints."""
    annotation = _bare(annotation)
    if not keys:
        return annotation
    key, rest = keys[0], keys[1:]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(key))
        return _descend(field.annotation, rest) if field else None
    if dataclasses.is_dataclass(annotation):
        return _descend(get_type_hints(annotation).get(str(key)), rest)
    arguments = [item for item in get_args(annotation) if item is not Ellipsis]
    return _descend(arguments[-1], rest) if arguments else None


def _bare(annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _bare(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        first, *_ = (part for part in get_args(annotation) if part is not types.NoneType)
        return _bare(first)
    return annotation
