"""
`orchestrator.run` called from Python, with runs that are trained already.
"""

import inspect
import os
import sqlite3
from dataclasses import fields

import pytest

import orchestrator
from orchestrator.driver.session import RunOptions


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


@pytest.mark.parametrize("option", ["profile", "settings", "spec", "nonsense"])
def test_an_option_that_does_not_exist_is_named(reported, option):
    with pytest.raises(TypeError, match=rf"^run\(\) got an unexpected .*'{option}'"):
        orchestrator.run(reported, **{option: "x"})


def test_run_has_the_options_of_the_command_with_their_defaults():
    parameters = inspect.signature(orchestrator.run).parameters
    defaults = {field.name: field.default for field in fields(RunOptions)}
    given = {name: item.default for name, item in parameters.items()}
    del given["experiment"], given["observer"]
    del defaults["spec"], defaults["profile"], defaults["settings"]

    assert given == defaults
    assert all(f"- `{name}`: " in orchestrator.run.__doc__ for name in given)
