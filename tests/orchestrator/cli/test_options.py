"""
The commands share their options.
"""

from pathlib import Path

import pytest
from typer.main import get_command

from orchestrator.cli import app

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
