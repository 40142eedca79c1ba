"""A radius as people write it."""

import math


class RadiusError(ValueError):
    """What was written is no radius: one line."""

    exit_code = 2


def parsed(text: str) -> float:
    """The radius of `0.5` or `36/255`, in the units of the pixels. Raises: RadiusError."""
    above, slash, below = text.partition("/")
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 <= value < math.inf:
        raise RadiusError(
            f"{text!r} is no radius; write a number that is not negative, like 0.5 or 36/255"
        )
    return value
