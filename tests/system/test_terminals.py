"""
Terminals of other encodings, and arguments that are no text.
"""

import shutil
import subprocess
import sys

import pytest

from tests.support.shell import PROJECT, Shell


@pytest.fixture
def shell(tmp_path, data_root):
    return Shell(tmp_path, data_root)


@pytest.mark.parametrize(("encoding", "signs"), [("ascii", "ε√"), ("latin-1", "??")])
def test_signs_that_a_terminal_lacks_are_replaced(shell, encoding, signs):
    """
    For ASCII, which is often set by mistake, the library of the command line writes UTF-8.
    """
    shutil.copy(shell.folder / "experiments.yaml", shell.folder / "ε.yaml")
    shell.environment["PYTHONIOENCODING"] = encoding
    valid, missing = shell.process("validate", "ε.yaml"), shell.process("validate", "√.yaml")

    assert (valid.returncode, missing.returncode) == (0, 2)
    assert f"{signs[0]}.yaml: valid: 2 runs" in valid.stdout
    assert missing.stderr == f"Error: {signs[1]}.yaml: no such file or directory\n"


def test_signs_of_file_names_are_replaced_by_certify(tmp_path):
    command = [sys.executable, "-m", "aol", "certify", "√.safetensors", "ε.png"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (2, "?.png: no such file\n")


def test_an_argument_that_is_not_utf_8_is_refused(shell):
    refused = shell("query", "SELECT \udcff")

    assert refused.returncode == 2
    assert refused.stderr == r"Error: the argument 'SELECT \udcff' is not UTF-8" + "\n"
