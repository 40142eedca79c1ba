"""Validating input with pydantic: every error at once, in messages that name field and rule."""

import copy
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.spec.source import Loc, shorten

Model = TypeVar("Model", bound=BaseModel)
FieldError = tuple[Loc, str]

NUMBER = re.compile(r"(?P<factor>\d+)?(?:√(?P<root>\d+))?(?:/(?P<divisor>\d+))?")
MAX_ROUNDS = 20  # of replacing; each goes at most one level down in nested sections
MAX_SHOWN = 60  # characters of a wrong value
MAX_DIGITS = 18  # numbers of so many digits are below 2**63
MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}
UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
EXPECTED: dict[str, tuple[str, Any]] = {  # by pydantic's name of a type: its rule, a valid value
    "int": ("a whole number", 1),
    "float": ("a number", 1.0),
    "bool": ("true or false", False),
    "string": ("text", "_"),
    "path": ("a path", "_"),
    "list": ("a list", []),
    "tuple": ("a list", []),
    "dict": ("a mapping", {}),
    "model": ("a mapping", {}),
    "dataclass": ("a mapping", {}),
}


def validate(model: type[Model], data: Mapping[str, Any]) -> tuple[Model | None, list[FieldError]]:
    """Return the model and every error with the path of its field.

    A wrong value hides the checks behind it: pydantic calls a dataclass's `__post_init__` only
    when all fields are valid. So wrong values are replaced and the data is validated again, until
    nothing new is found. The model has these replacements; it is None if none is valid.
    """
    repaired = copy.deepcopy(dict(data))
    errors: list[FieldError] = []
    details = _misread_numbers(model, repaired)
    for _ in range(MAX_ROUNDS):
        found = [(detail, error) for detail in details for error in _explain(model, detail)]
        errors += _new_errors((error for _, error in found), errors)
        for detail, (loc, _) in found:
            _replace(repaired, loc, detail)
        try:
            return model.model_validate(repaired), errors
        except ValidationError as error:
            placed = _place_errors(error, repaired)
            details = [detail for detail in placed if not _read_number(repaired, detail)]
    return None, errors


def suggest(word: str, allowed: list[str]) -> str:
    """Return the hint for an unknown word: the closest allowed one, and all of them."""
    close = difflib.get_close_matches(word[:MAX_SHOWN], allowed, n=1, cutoff=0.5)
    close = close or [name for name in allowed if name.split(".")[-1] == word][:1]
    hint = f"; did you mean `{close[0]}`?" if close else ""
    return f"{hint} (allowed: {', '.join(allowed)})"


def dotted_names(annotation: Any) -> list[str]:
    """Return the names of all values below a model or dataclass: `model.kind`, `epochs`, ..."""
    names = []
    for name, inner in _fields(annotation).items():
        names += [f"{name}.{part}" for part in dotted_names(inner)] or [name]
    return names


def parse_number(text: str) -> float | None:
    """Return a number written as in the paper (`√2/16`, `4√2`, `1/64`), None for other text."""
    match = NUMBER.fullmatch(text.replace(" ", ""))
    if not match or not (match["factor"] or match["root"]):
        return None
    divisor = float(match["divisor"] or 1)
    numerator = float(match["factor"] or 1) * float(match["root"] or 1) ** 0.5
    return numerator / divisor if divisor else None


def _new_errors(found: Iterable[FieldError], errors: Sequence[FieldError]) -> list[FieldError]:
    """Return the errors that are not at a path of earlier ones, above it or below it."""
    known = {loc for loc, _ in errors}
    above = {prefix for loc in known for prefix in _prefixes(loc)}
    return [
        (loc, text) for loc, text in found if loc not in above and known.isdisjoint(_prefixes(loc))
    ]


def _prefixes(loc: Loc) -> list[Loc]:
    """Return the path and those of the values around it."""
    return [loc[:length] for length in range(len(loc) + 1)]


def _misread_numbers(model: type[BaseModel], data: Any) -> list[ErrorDetails]:
    """Return the errors of values that pydantic reads as numbers unless it is strict.

    These are `true` and `false`, and text of more digits than a whole number may have.
    """
    try:  # as JSON: there a list is a tuple and a mapping a dataclass, also if strict
        model.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        return [
            detail
            for detail in error.errors()
            if detail["type"] in ("int_type", "float_type")
            and (isinstance(detail["input"], bool) or _is_too_long(detail))
        ]
    return []


def _is_too_long(detail: ErrorDetails) -> bool:
    value = detail["input"]
    return detail["type"] == "int_type" and isinstance(value, str) and len(value) > MAX_DIGITS


def _explain(model: type[BaseModel], detail: ErrorDetails) -> list[FieldError]:
    """Return the paths of the wrong fields and what is wrong with them."""
    loc, kind, value = detail["loc"], detail["type"], detail["input"]
    if kind in UNKNOWN:
        allowed = list(_fields(_type_at(model, loc[:-1])))
        return [(loc, f"unknown field{suggest(str(loc[-1]), allowed)}")]
    if kind in MISSING:
        return [(loc, "is missing")]
    if kind in ("string_too_short", "too_short"):
        return [(loc, "must not be empty")]
    if kind == "too_long":
        return [(loc, f"must have at most {detail['ctx']['max_length']} entries")]
    if kind == "value_error":
        text = str(detail["ctx"]["error"])
        if dataclasses.is_dataclass(_type_at(model, loc)):  # a line for each field: aol.config
            lines = [line.partition(": ") for line in text.splitlines()]
            return [((*loc, field), message) for field, _, message in lines]
        return [(loc, f"got {shorten(repr(value), MAX_SHOWN)}: {text}")]
    rule = detail["msg"].partition(" should ")[2]
    name, _, fault = kind.partition("_")
    if name in EXPECTED and fault in ("type", "parsing", "from_float"):
        rule = f"be {EXPECTED[name][0]}{' below 2**63' if _is_too_long(detail) else ''}"
    return [(loc, f"must {rule}, got {shorten(repr(value), MAX_SHOWN)}")]


def _place_errors(error: ValidationError, data: Any) -> list[ErrorDetails]:
    """Return pydantic's errors with paths that exist in the data.

    Pydantic's own paths also have the types of a union.
    """
    details = error.errors()
    for detail in details:
        value, loc = data, detail["loc"]
        for length, key in enumerate(loc):
            is_field = isinstance(value, dict) and key == loc[-1]  # which may be missing
            try:
                value = value[key]
            except (LookupError, TypeError):
                detail["loc"] = loc if is_field else loc[:length]
                break
    return details


def _read_number(data: dict[str, Any], detail: ErrorDetails) -> bool:
    """Replace a number written as in the paper; return whether there was one."""
    if detail["type"] not in ("int_parsing", "float_parsing"):
        return False
    number = parse_number(detail["input"])
    if number is not None:
        _parent(data, detail["loc"])[detail["loc"][-1]] = number
    return number is not None


def _replace(data: dict[str, Any], loc: Loc, detail: ErrorDetails) -> None:
    """Take a wrong value out, so that its default counts.

    Without a default it becomes None: the error about that names the type of a valid value.
    """
    parent, last, kind = _parent(data, loc), loc[-1], detail["type"]
    value = None
    if detail["input"] is None and kind == "literal_error":
        value = detail["ctx"]["expected"].split("'")[1]
    elif detail["input"] is None and kind.removesuffix("_type") in EXPECTED:
        value = copy.copy(EXPECTED[kind.removesuffix("_type")][1])
    if value is None and isinstance(parent, dict) and kind not in MISSING:
        parent.pop(last, None)
    else:
        parent[last] = value


def _parent(data: Any, loc: Loc) -> Any:
    """Return the mapping or list that holds the value at `loc`."""
    for key in loc[:-1]:
        data = data[key]
    return data


def _type_at(annotation: Any, loc: Loc) -> Any:
    """Return the type at a path below a type, without None and constraints."""
    for key in loc:
        fields = _fields(annotation)
        items = [part for part in get_args(annotation) if part is not Ellipsis]
        annotation = fields.get(str(key)) if fields else items[-1] if items else None
        if NoneType in get_args(annotation):
            annotation = get_args(annotation)[0]
    return annotation


@cache
def _fields(annotation: Any) -> dict[str, Any]:
    """Return the fields of a model or dataclass with their types, none for another type."""
    for attribute in ("model_fields", "__dataclass_fields__"):
        if names := getattr(annotation, attribute, ()):
            hints = get_type_hints(annotation)
            return {name: hints[name] for name in names}
    return {}
