"""Figures that take no time to draw, for tests of their files."""

import json
from contextlib import contextmanager

import pytest

SIZE = 40_000  # bytes, as much as a real one


def _write_data(figure, path, **_):
    """
    Write the data of a figure's lines, so that other values give another file.
    """
    lines = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
    path.write_text(json.dumps(lines).ljust(SIZE), encoding="utf-8")


@contextmanager
def sketched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", _write_data)
        yield
