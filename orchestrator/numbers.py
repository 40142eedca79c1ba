"""Numbers as they are printed."""

import math

MISSING = "–"
DECIMALS = 1  # the paper prints percent with one decimal
LENGTHS = ((90.0, 1, "s"), (5400.0, 60, "min"), (172800.0, 3600, "h"), (math.inf, 86400, "days"))


def shown(value: float | None, *, signed: bool = False) -> str:
    """A percentage as the paper prints it, – where there is none."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}z.{DECIMALS}f}"  # z: no -0.0


def number_of(count: float, one: str, many: str = "") -> str:
    """`1 seed`, `2 seeds`; `many` is what does not get its plural from an s at the end."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:g}"
    return f"{number} {one if count == 1 else many or f'{one}s'}"


def two_digits(value: float) -> str:
    """A number that is not known better than to two digits: 0.00033, 3.3, 33; whole ones all."""
    if not value:
        return "0"
    rounded = float(f"{value:.1e}")
    decimals = 1 - math.floor(math.log10(abs(rounded)))
    return f"{value:,.{max(0, decimals)}f}"


def duration(seconds: float | None, *, rough: bool = False) -> str:
    """A length of time as people say it: 1.2 s, 12 min, 3.5 h, 40 days; of one digit if `rough`."""
    if seconds is None:
        return MISSING
    unit, name = next((unit, name) for most, unit, name in LENGTHS if seconds < most)
    length = seconds / unit
    if rough:
        length = float(f"{length:.0e}")
    return f"{round(length, 1):g} {name}" if length < 10 else f"{length:.0f} {name}"
