"""Numbers as the tables print them."""

MISSING = "–"
DECIMALS = 1  # the paper prints percent with one decimal


def shown(value: float | None, *, signed: bool = False) -> str:
    """A percentage as the paper prints it, – where there is none."""
    if value is None:
        return MISSING
    return f"{value:{'+' if signed else ''}z.{DECIMALS}f}"  # z: no -0.0
