from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from aol.config import ModelConfig
from aol.models.architectures import conv, fully_connected, patchwise, std
from aol.models.widths import misfit, neighbours, widths_of

UNITS = {"patchwise": 192, "fc": 4096, "std": 32}  # channels at width 1; of "conv" its size
KINDS = st.sampled_from([*UNITS, "conv"])
SIZES = st.integers(1, 220)
CLASSES = st.sampled_from([2, 10, 100])


def built(config):
    """
    Return the network of the widths, even if they do not fit.
    """
    widths = widths_of(config)
    match config.kind:
        case "patchwise":
            return patchwise(
                widths.kept, 10, channels=widths.channels, convolutions=2, dense_layers=2
            )
        case "fc":
            return fully_connected(widths.channels, 10)
        case "conv":
            return conv(widths.channels, 10)
        case "std":
            return std(widths.channels, 10)


def gives_scores(config):
    """
    Return whether two images become ten scores each; only the shapes are computed.
    """
    with torch.device("meta"), torch.no_grad():
        try:
            return built(config)(torch.empty(2, 3, 32, 32)).shape == (2, 10)
        except (RuntimeError, ValueError):  # no product, no pairs
            return False


@given(kind=KINDS, size=SIZES, width=st.floats(1e-4, 1.5))
@example(kind="patchwise", size=193, width=1.0)
@example(kind="patchwise", size=200, width=1 / 16)
@example(kind="conv", size=16, width=1.0)
@example(kind="conv", size=3, width=1.0)
@example(kind="fc", size=16, width=8 / 4096)
@example(kind="std", size=16, width=0.01)
def test_widths_fit_exactly_if_the_network_gives_scores(kind, size, width):
    config = ModelConfig(kind=kind, size=size, width=width)

    assert (misfit(config, 10) is None) == gives_scores(config)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"kind": "fc", "width": 257.0}, "a layer has at most 1048576 channels"),
        ({"kind": "fc", "width": 1e308}, "a layer has at most 1048576 channels"),
        ({"kind": "conv", "size": 10**400}, "a layer has at most 1048576 channels"),
        ({"kind": "conv", "size": 2**14 + 2}, "a layer has at most 1048576 channels"),
        ({"kind": "std", "width": 1025.0}, "a layer has at most 1048576 channels"),
    ],
)
def test_a_network_with_too_many_channels_is_refused(config, reason):
    assert misfit(ModelConfig(**config), 10) == reason


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "fc", "width": 256.0},
        {"kind": "conv", "size": 2**14},
        {"kind": "std", "width": 1024.0},
        {"kind": "patchwise", "size": 1, "width": 5461.0},
    ],
)
def test_the_largest_networks_can_be_described(config):
    """
    torch counts the bytes of their weights in 64 bits, so their cost can be estimated.
    """
    config = ModelConfig(**config)
    with torch.device("meta"):
        weights = sum(parameter.nbytes for parameter in built(config).parameters())

    assert misfit(config, 10) is None
    assert weights > 2**40


@given(kind=KINDS, size=st.integers(1, 48), now=st.floats(0.01, 400), classes=CLASSES)
@example(kind="fc", size=16, now=41.0, classes=10)
@example(kind="patchwise", size=1, now=1.0, classes=100)
def test_neighbouring_widths_are_the_nearest_that_fit(kind, size, now, classes):
    unit = UNITS.get(kind, size)
    config = ModelConfig(kind=kind, size=size, width=now / unit)
    fitting = [n for n in range(1, 1000) if not misfit(replace(config, width=n / unit), classes)]
    below = [n for n in fitting if n < now][-1:]
    above = [n for n in fitting if n > now][:1]

    if misfit(config, classes):
        assert neighbours([(config, classes)], "width") == [
            Fraction(n, unit) for n in below + above
        ]


@pytest.mark.parametrize(
    ("config", "field", "values"),
    [
        ({"kind": "conv", "size": 3}, "size", [2, 4]),
        ({"kind": "conv", "size": 6, "width": 0.5}, "size", [5, 7]),
        ({"kind": "conv", "size": 1, "width": 1.0}, "size", [2]),
        ({"kind": "conv", "size": 2**62}, "size", [2**14]),
        ({"kind": "patchwise", "size": 200}, "size", [192]),
        ({"kind": "patchwise", "size": 16, "width": 15 / 192}, "size", []),
        ({"kind": "fc", "width": 1e308}, "width", [256]),
        ({"kind": "fc", "width": 0.01}, "width", [Fraction(40, 4096), Fraction(42, 4096)]),
        ({"kind": "fc", "width": 0.01}, "size", []),
    ],
)
def test_neighbours_are_below_and_above_if_there_are_any(config, field, values):
    assert neighbours([(ModelConfig(**config), 10)], field) == values


def test_neighbours_of_several_networks_fit_them_all():
    """
    0.14 makes 27 channels in AOL-Small, 573 in AOL-FC, and 2 in AOL-Conv, which fits already.
    """
    kinds = ("patchwise", "fc", "conv")
    models = [(ModelConfig(kind=kind, width=0.14), 10) for kind in kinds]
    below, above = neighbours(models, "width")

    assert 0.137 < below < 0.14 < above < 0.15
    for kind in kinds:
        for value in (below, above):
            assert misfit(ModelConfig(kind=kind, width=float(value)), 10) is None


def test_networks_with_nothing_in_common_have_no_neighbours():
    models = [(ModelConfig(kind=kind, width=1e9), 10) for kind in ("fc", "conv")]

    assert neighbours(models, "size") == []
