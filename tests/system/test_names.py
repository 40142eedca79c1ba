"""
Folders and files have the names that users give them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shell import PROJECT, Shell

NAME = 'we?ird #1 & "ü" 100% 🙂'


def files_in(folder):
    return {path.name for path in folder.iterdir()}


def printed_command(text, label):
    """
    Return the command in a line of the output, with this interpreter for `python`.
    """
    (command,) = re.findall(rf"^{label}: (.*)$", text, re.MULTILINE)
    return re.sub(r"^\S+ -m", f"{sys.executable} -m", command)


@pytest.fixture
def shell(trained, tmp_path):
    return trained.copy(tmp_path / NAME)


def test_reading_commands_work_in_a_folder_of_any_name(shell):
    for arguments in (
        ("plan", "--profile", "demo"),
        ("status",),
        ("explain", "0"),
        ("query", "SELECT count(*) FROM runs"),
        ("missing", "--profile", "demo"),
    ):
        done = shell(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), arguments


def test_results_are_written_and_shared_between_folders_of_any_name(shell, tmp_path):
    bundle = tmp_path / f"{NAME}.zip"
    other = Shell(tmp_path / f"other {NAME}", shell.environment["AOL_DATA"])

    for done in (
        shell(
            "report", "--profile", "demo", "--results", f"{NAME} 2", "--store", "results/store.db"
        ),
        shell("export", "0", "--profile", "demo", "--out", shell.folder / f"{NAME} model"),
        shell("bundle", bundle, "--profile", "demo"),
        other("verify", bundle),
        other("merge", bundle),
        other("merge", shell.folder / "results" / "store.db"),
        other("report", "--profile", "demo", "--store", bundle),
    ):
        assert done.returncode == 0, done.stderr

    assert files_in(shell.folder / f"{NAME} model") >= {"network.safetensors", "README.md"}
    assert files_in(tmp_path) == {NAME, f"{NAME}.zip", f"other {NAME}"}
    assert files_in(other.folder) == {"experiments.yaml", "mlflow.db", "mlruns", "results"}


def test_mlflow_has_the_runs_and_their_files_in_a_folder_of_any_name(shell, tmp_path):
    from mlflow import MlflowClient

    from orchestrator.tracking import tracking_uri

    (shell.folder / "mlflow.db").unlink()
    done = shell("sync")

    assert done.returncode == 0, done.stderr
    client = MlflowClient(tracking_uri(shell.folder))
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    (report,) = (run.info.run_id for run in runs if "aol.report" in run.data.tags)
    assert len(runs) == 2 + 1
    assert {one.path for one in client.list_artifacts(report)} == {"figures", "tables"}
    assert Path(client.download_artifacts(report, "tables/tables.md")).is_file()
    assert files_in(tmp_path) == {NAME}


@pytest.mark.parametrize("option", ["--results=~/r", "--store=~/r/store.db"])
def test_a_tilde_stands_for_the_home_directory_in_every_option(shell, tmp_path, option):
    (tmp_path / "r").symlink_to(shell.folder / "results")
    shell.environment["HOME"] = str(tmp_path)

    assert shell("status", option).returncode == 0
    assert shell("bundle", "~/b.zip", "--profile", "demo", option).returncode == 0
    assert shell("verify", "~/b.zip").returncode == 0
    assert shell("report", "--store=~/b.zip", "--profile", "demo").returncode == 0
    assert shell("export", "0", "--profile", "demo", option, "--out=~/m").returncode == 0
    assert files_in(tmp_path) >= {"b.zip", "m"}
    assert not (shell.folder / "~").exists()


@pytest.mark.slow
def test_runs_train_in_a_folder_of_any_name_and_the_printed_commands_work(data_root, tmp_path):
    shell = Shell(tmp_path / NAME, data_root)
    long = tmp_path / f"{NAME} {'t' * 80}"
    long.mkdir()
    shell.environment |= {"TMPDIR": str(long)}
    options = ["--profile", "demo", "--results", f"{NAME} results", "--storage", f"{NAME} ray"]

    done = shell.process("run", *options)
    again = shell.process("run", *options)

    assert done.returncode == 0, done.stderr
    assert "Nothing to do: 2 runs are done" in again.stderr
    assert files_in(shell.folder) == {
        *("experiments.yaml", "mlflow.db", "mlruns", f"{NAME} results", f"{NAME} ray")
    }
    report = subprocess.run(
        printed_command(done.stderr, "Print them"),
        shell=True,
        check=True,
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
    )
    assert "The only table" in report.stdout
    exported = shell("export", "0", *options[:4], "--out", "model")
    assert exported.returncode == 0, exported.stderr


def test_the_program_works_from_a_folder_of_any_name(tmp_path):
    checkout = tmp_path / "100% #?"
    checkout.symlink_to(PROJECT)
    script = "from orchestrator.store import Store, engine; print(engine.__file__); Store('x.db')"

    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
    )

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith(str(checkout))
