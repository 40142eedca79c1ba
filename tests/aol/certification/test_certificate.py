import pytest

from aol.certification.certificate import parse_radius
from aol.errors import RadiusError


@pytest.mark.parametrize(
    ("text", "radius"), [("0", 0.0), ("0.5", 0.5), ("36/255", 36 / 255), (" 1e-3 ", 0.001)]
)
def test_a_radius_is_a_number_or_a_fraction(text, radius):
    assert parse_radius(text) == radius


@pytest.mark.parametrize(
    "text",
    [
        *("wide", "", "/", "36/", "1/0", "1/2/3"),
        *("inf", "nan", "1e400", "1e999999999", "1e308/1e-308", "-1", "-inf"),
    ],
)
def test_an_invalid_radius_is_a_one_line_error(text):
    with pytest.raises(RadiusError) as caught:
        parse_radius(text)

    assert str(caught.value) == (
        f"{text!r} is not a radius; write a number that is not negative, like 0.5 or 36/255"
    )
