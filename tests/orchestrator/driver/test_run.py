"""
`orchestrator.run` called from Python, with runs that are trained already.
"""

import os
import sqlite3

import pytest

import orchestrator


@pytest.fixture
def folder(trained, tmp_path):
    trained.copy(tmp_path)
    environment = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(environment)


def cells_of(folder):
    with sqlite3.connect(folder / "results" / "store.db") as database:
        rows = database.execute("SELECT * FROM v_cells ORDER BY place").fetchall()
    database.close()
    return rows


def test_selected_runs_leave_tables_and_cells_of_the_whole_profile(folder):
    experiment = orchestrator.load_experiment(folder / "experiments.yaml", "demo")
    tables = folder / "results" / "demo" / "tables.md"
    before = cells_of(folder), tables.read_text(encoding="utf-8")
    outcome = orchestrator.run(experiment.select([0]))

    assert [run.run_id for run in outcome.runs] == [0]
    assert outcome.done
    assert (cells_of(folder), tables.read_text(encoding="utf-8")) == before
    assert len(before[0]) == 4
