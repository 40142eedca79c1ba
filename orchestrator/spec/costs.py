"""The file of a benchmark of costs, which a claim refers to."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from aol.reading import read_limited
from orchestrator.errors import RecordError

SIZE_LIMIT = 2**20  # bytes
Values = Annotated[list[Annotated[FiniteFloat, Field(gt=0)]], Field(min_length=2)]


class MethodCosts(BaseModel):
    """The costs of a method: each round's milliseconds per training step, each process's MB."""

    step_ms: Values
    peak_mb: Values


class CostRecord(BaseModel):
    """The file that a benchmark of costs wrote; `setting` says what was measured, and where."""

    form: Annotated[Literal["aol-costs/1"], Field(alias="schema")]
    setting: str
    methods: dict[str, MethodCosts]


def read_costs(file: Path) -> CostRecord:
    """Return the record in a file. Raises: RecordError if it cannot be read or is not valid."""
    try:
        return CostRecord.model_validate_json(read_limited(file, SIZE_LIMIT))
    except OSError as error:
        raise RecordError(f"{file}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(f"{file}: {place}: {first['msg']}") from error
    except ValueError as error:
        raise RecordError(f"{file}: {str(error).removeprefix(f'{file.name} ')}") from error
