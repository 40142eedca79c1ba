"""
The example scripts work unchanged, and the public names can be imported.
"""

import os
import subprocess
import sys

import pytest

import orchestrator
from tests.support.shell import PROJECT, TINY


@pytest.mark.slow
def test_the_example_trains_reports_and_has_nothing_to_do_the_second_time(tmp_path, data_root):
    (tmp_path / "experiments.yaml").write_text(TINY, encoding="utf-8")
    environment = os.environ | {"AOL_DATA": str(data_root), "PYTHONPATH": str(PROJECT)}
    environment.pop("TRITON_INTERPRET", None)
    script = PROJECT / "examples" / "run_and_report.py"

    def call():
        command = [sys.executable, str(script), "experiments.yaml"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    first, second = call(), call()

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == "run 0 AOL-Small: new, not in the store"
    assert "run 11: done after 3 epochs" in lines
    assert (tmp_path / "results" / "demo" / "tables.md").read_text() in first.stdout
    again = second.stdout.splitlines()
    assert again[0] == "run 0 AOL-Small: done, trained 3 epochs"
    assert again[2:] == lines[2:]


def test_every_public_name_can_be_imported_and_no_other():
    assert sorted(orchestrator.__all__) == dir(orchestrator)
    for name in orchestrator.__all__:
        assert getattr(orchestrator, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = orchestrator.nothing
