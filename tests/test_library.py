"""
The library as a user imports it: the names of `aol`, and every code block of docs/library.md.
"""

import ast
import re
import subprocess
import sys

import pytest
import torch

import aol
from tests.support.shell import PROJECT

PAGE = (PROJECT / "docs" / "library.md").read_text(encoding="utf-8")
SECTIONS = PAGE.split("\n## ")[1:]
pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(section):
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def first(one_thread):
    """
    Return the names after the first section, the script that trains on the digits.
    """
    torch.manual_seed(0)
    names = {}
    exec(blocks(SECTIONS[0])[0], names)
    return names


def test_every_section_has_code():
    titles = [section.splitlines()[0] for section in SECTIONS]

    assert len(titles) == 4
    assert all(blocks(section) for section in SECTIONS)
    assert PAGE.count("```") == 2 * sum(len(blocks(section)) for section in SECTIONS)


def test_the_script_of_a_new_user_reaches_95_percent(first):
    assert first["accuracy"] > 0.95
    assert len(first["test"]) == 450


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_pages_other_code_works(first, number):
    names = dict(first)
    exec(blocks(SECTIONS[1])[0].splitlines()[0], names)  # import aol
    for block in blocks(SECTIONS[number]):
        exec(block, names)

    if number == 2:
        assert names["robust"] == pytest.approx(0.72, abs=0.05)
        assert (names["radius"] > 0).double().mean() == pytest.approx(first["accuracy"].item())


# --- names ---


def test_all_names_can_be_imported_and_are_listed():
    assert sorted(aol.__all__) == aol.__all__
    assert set(aol.__all__) <= set(dir(aol))
    for name in aol.__all__:
        assert getattr(aol, name).__name__ == name
    names = {}
    exec("from aol import *", names)
    assert set(aol.__all__) <= set(names)


def test_the_three_lists_of_names_agree():
    """
    They are the exported names, those for a type checker, and those that are found when used.
    """
    tree = ast.parse((PROJECT / "aol" / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        for alias in node.names
    }

    assert typed == aol._MODULES
    assert sorted(typed) == aol.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aol' has no attribute 'AOLDense'"):
        _ = aol.AOLDense
    with pytest.raises(ImportError, match="cannot import name 'AOLDense'"):
        from aol import AOLDense  # noqa: F401


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import aol; dir(aol); aol.__all__", False),
        ("from aol import TrainConfig, LipschitzCertificate, AOLError", False),
        ("import aol; aol.MaxMin", True),
    ],
)
def test_torch_is_imported_with_the_first_name_that_needs_it(code, imported):
    code = f"import sys; {code}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=PROJECT)

    assert done.returncode == imported
