"""
The code and the queries of docs/store.md work as printed.
"""

import re

import pytest

from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store
from orchestrator.store.cells import store_published_cells
from tests.support.reports import finish
from tests.support.shell import PROJECT

PAGE = (PROJECT / "docs" / "store.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch, make_run):
    """
    Change to a folder with a store of one finished run of the paper's profile.
    """
    store = Store(tmp_path / "results" / "store.db")
    finish(store, make_run(0, profile="paper"), 0.0)
    store_published_cells(SpecFile(PROJECT / "experiments.yaml").experiment("paper"), store)
    store.close()
    monkeypatch.chdir(tmp_path)


def test_the_notebooks_code_works(folder):
    names = {}
    for block in blocks("python"):
        exec(block, names)

    assert len(names["final"]) == len(names["frame"]) / 3


def test_the_queries_return_rows(folder):
    store = Store("results/store.db")
    queries = [query for block in blocks("sql") for query in block.split(";") if query.strip()]
    found = [store.query(query) for query in queries]
    store.close()

    assert [len(rows) for _, rows in found] == [4, 3]


@pytest.mark.parametrize("view", ["v_final", "v_cells"])
def test_the_views_have_the_columns_that_the_page_names(folder, view):
    store = Store("results/store.db")
    columns, _ = store.query(f"SELECT * FROM {view}")
    store.close()
    (row,) = re.findall(rf"^\| `{view}` \|.*\| (.*) \|$", PAGE, re.MULTILINE)

    assert re.sub(r" \(.*?\)", "", row).split(", ") == columns
