"""
The commands share their options.
"""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

from orchestrator.cli import app
from orchestrator.cli.run import _report_command
from orchestrator.driver.session import RunOptions

COMMANDS = get_command(app).commands
WITH_SPEC = sorted(set(COMMANDS) - {"verify"})  # a bundle contains its own


def arguments(command):
    return [one for one in command.params if one.param_type_name == "argument"]


@pytest.mark.parametrize("name", WITH_SPEC)
def test_every_command_reads_the_file_in_the_current_folder_by_default(name):
    (spec,) = [one for one in COMMANDS[name].params if one.name == "spec"]

    assert (spec.required, spec.default) == (False, Path("experiments.yaml"))
    assert spec.help.startswith("The YAML file of experiments.")


@pytest.mark.parametrize("name", WITH_SPEC)
def test_the_file_is_an_option_where_a_command_has_arguments_of_its_own(name):
    (spec,) = [one for one in COMMANDS[name].params if one.name == "spec"]
    others = [one for one in arguments(COMMANDS[name]) if one is not spec]

    assert (spec in arguments(COMMANDS[name])) == (not others)


def test_verify_needs_no_file():
    assert "spec" not in [one.name for one in COMMANDS["verify"].params]


def test_the_printed_report_command_is_quoted_and_selects_the_same_store(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = RunOptions(spec=tmp_path / "my file.yaml", results=Path("my results"), store="a.db")
    whole = SimpleNamespace(options=("--profile", "demo"))
    command = _report_command(SimpleNamespace(options=given, whole=whole))

    assert shlex.split(command)[1:] == [
        *("-m", "orchestrator", "report", "my file.yaml", "--profile", "demo"),
        *("--results", "my results", "--store", "a.db"),
    ]
