"""The types that the fields of the YAML file are made of."""

import re
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat

from aol.certification import certificate
from aol.text import is_one_line

Metric = Literal["accuracy", "cra_36", "cra_72", "cra_108", "cra_1"]
Measurement = Literal["layer norm", "nearly orthogonal", "under attack"]  # of a run's network
RADII = cast(dict[Metric, float], {"accuracy": 0.0, **certificate.RADII})
LAYER_NORM: Measurement = "layer norm"  # the largest proven bound of a layer's norm
NEARLY_ORTHOGONAL: Measurement = "nearly orthogonal"  # percent of singular values above 0.9
UNDER_ATTACK: Measurement = "under attack"  # percent of the attacked images that stay right
MEASUREMENTS: tuple[Measurement, ...] = (LAYER_NORM, NEARLY_ORTHOGONAL, UNDER_ATTACK)
MAX_ID = 1_000_000
MAX_IDS = 10_000  # that a text of ranges may stand for
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+")


def parse_ids(value: Any) -> tuple[int, ...]:
    """Return the numbers of "0, 20-24" or "0..4" (or of a list), in order, each once.

    Raises: ValueError.
    """
    if isinstance(value, list):
        value = ",".join(str(item) for item in value)
    numbers: dict[int, None] = {}
    count = 0
    for part in str(value).replace("..", "-").split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            raise ValueError(
                f"{part.strip()!r} is no number or range; write for example 0,20-24"
            ) from None
        if high > MAX_ID:
            raise ValueError(f"{high} is larger than {MAX_ID}")
        if high < low:
            raise ValueError(f"the range {part.strip()} is empty")
        if (count := count + high + 1 - low) > MAX_IDS:
            raise ValueError(f"stands for more than {MAX_IDS} numbers")
        numbers |= dict.fromkeys(range(low, high + 1))
    return tuple(numbers)


def _check_cell(text: str) -> str:
    if "|" in text or not is_one_line(text):
        raise ValueError("would break the printed table; use no | and no line break")
    return text


def _check_line(text: str) -> str:
    if not is_one_line(text):
        raise ValueError("use one line of printable characters")
    return text


def _check_prose(text: str) -> str:
    if not is_one_line(text.replace("\n", " ").replace("\t", " ")):
        raise ValueError("use printable characters")
    return text


def check_file_name(text: str) -> str:
    """Return a text that can be part of a file name. Raises: ValueError."""
    if not FILE_NAME.fullmatch(text):
        raise ValueError("becomes part of file names; use letters, digits, - and _")
    return text


Cell = Annotated[str, AfterValidator(_check_cell)]
Line = Annotated[str, AfterValidator(_check_line)]  # names and titles
Prose = Annotated[str, AfterValidator(_check_prose)]  # notes and claims
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]
Points = Annotated[FiniteFloat, Field(gt=0, le=100)]  # percentage points


class FrozenModel(BaseModel):
    """Base of models that are immutable and reject unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
