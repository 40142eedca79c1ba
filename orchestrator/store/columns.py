"""The types of the store's columns. SQLite keeps any value in any column: each read is checked.

A damaged file, or one from others, thus gives an error here, and not one far from the store.
"""

from datetime import datetime
from typing import Annotated, Any, ClassVar

from sqlalchemy import JSON, BigInteger, Double, Integer, LargeBinary, String, TypeDecorator
from sqlalchemy.types import TypeEngine

from aol.reading import parse_json

FIRST_YEAR = 1970


class DamagedValueError(Exception):
    """Raised when a stored value cannot be what its column holds."""


class Checked(TypeDecorator[Any]):
    """Base of the types, which reject stored values of other Python types."""

    impl: type[TypeEngine[Any]] = String
    cache_ok = True  # SQLAlchemy does not inherit it
    kinds: ClassVar[tuple[type, ...]]

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Return the value. Raises: DamagedValueError."""
        if value is None or isinstance(value, self.kinds):
            return value
        found, wanted = type(value).__name__, self.kinds[0].__name__
        raise DamagedValueError(f"{found} is stored where {wanted} belongs")


class Text(Checked):
    """A text."""

    cache_ok = True
    kinds: ClassVar[tuple[type, ...]] = (str,)


class Whole(Checked):
    """A whole number."""

    cache_ok = True
    impl = Integer
    kinds: ClassVar[tuple[type, ...]] = (int,)


class LongWhole(Checked):
    """A whole number of 64 bits."""

    cache_ok = True
    impl = BigInteger
    kinds: ClassVar[tuple[type, ...]] = (int,)


class Real(Checked):
    """A number."""

    cache_ok = True
    impl = Double
    kinds: ClassVar[tuple[type, ...]] = (float, int)


class Bytes(Checked):
    """A byte string."""

    cache_ok = True
    impl = LargeBinary
    kinds: ClassVar[tuple[type, ...]] = (bytes,)


class Json(Checked):
    """A JSON object. None is SQL's NULL."""

    cache_ok = True
    impl = JSON
    kinds: ClassVar[tuple[type, ...]] = (dict,)

    def __init__(self) -> None:
        super().__init__(none_as_null=True)


class JsonList(Json):
    """A JSON list."""

    cache_ok = True
    kinds: ClassVar[tuple[type, ...]] = (list,)


class IsoTime(Text):
    """A time of ISO 8601 with its zone, as text."""

    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        """Return the text. Raises: DamagedValueError."""
        text = super().process_result_value(value, dialect)
        if text is not None and not is_time(text):
            raise DamagedValueError(f"{text!r} is stored where a time with its zone belongs")
        return text


Time = Annotated[str, IsoTime]


def is_time(text: str) -> bool:
    """Return whether a text is a time of ISO 8601 with its zone, after 1970."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return False
    return time.tzinfo is not None and FIRST_YEAR < time.year < datetime.max.year


def load_json(text: str) -> Any:
    """Return a stored JSON value. Raises: DamagedValueError."""
    try:
        return parse_json(text)
    except (TypeError, ValueError) as error:
        raise DamagedValueError(f"a stored value is not JSON: {error}") from error
