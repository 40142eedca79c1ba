import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys

import pytest

from orchestrator import __main__ as program
from tests.support.mounts import read_only, small_disk
from tests.support.shell import PROJECT, UNREACHABLE_MLFLOW, Shell, statuses_of

VIEWS = ("report", "status", "compare", "cra", "query")
README = (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def finished(trained, tmp_path_factory):
    """
    Return a copy of the folder in which `run` has trained the tiny experiment once.
    """
    return trained.copy(tmp_path_factory.mktemp("finished"))


def test_a_run_writes_a_store_an_mlflow_database_logs_and_tables(finished):
    names = {path.relative_to(finished.folder).as_posix() for path in finished.folder.rglob("*")}

    assert {"results/store.db", "mlflow.db", "results/demo/tables.md"} <= names
    assert len([name for name in names if re.match(r"results/logs/\d+-s\d+-\w+\.log", name)]) == 2


def test_a_run_prints_its_progress_on_stderr_without_warnings(trained):
    text = trained.err

    assert trained.out == ""
    assert "2 done." in text
    assert "results/demo/tables.md" in text
    assert not re.search(r"warn|error|traceback|deprecat", text, re.IGNORECASE), text


def test_every_epoch_is_in_the_store_once(finished):
    database = sqlite3.connect(finished.folder / "results/store.db")
    rows = database.execute(
        "SELECT key, group_concat(DISTINCT epoch) FROM metrics GROUP BY key"
    ).fetchall()
    database.close()

    assert [sorted(epochs.split(",")) for _, epochs in rows] == [["1", "2", "3"]] * 2


def test_margins_of_every_test_image_are_stored(finished):
    database = sqlite3.connect(finished.folder / "results/store.db")
    rows = database.execute('SELECT count, length("values") FROM margins').fetchall()
    database.close()

    assert rows == [(100, 400), (100, 400)]


def test_mlflow_has_each_run_with_every_epoch_once(finished):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished.folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    (report,) = client.search_runs([experiment.experiment_id], "tags.`aol.report` = 'demo'")
    runs = client.search_runs([experiment.experiment_id], "tags.run_id != ''")

    assert sorted(run.data.tags["run_id"] for run in runs) == ["0", "11"]
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert sorted(item.step for item in history) == [1, 2, 3]
        assert run.info.status == "FINISHED"
    artifacts = client.list_artifacts(report.info.run_id)
    assert [item.path for item in artifacts] == ["figures", "tables"]


def test_a_second_run_has_nothing_to_do(finished):
    again = finished("run", "experiments.yaml", "--profile", "demo")

    assert again.returncode == 0
    assert "Nothing to do: 2 runs are done" in again.stderr
    assert "Starting Ray" not in again.stderr


def test_the_command_printed_at_the_end_of_a_run_prints_its_tables(finished):
    places = ("--results", "results", "--store", "results/store.db")
    printed = finished("run", "experiments.yaml", "--profile", "demo", *places).stderr
    python, *module, name = (command := shlex.split(re.search(r"Print them: (.*)", printed)[1]))[:3]
    done = finished(*command[3:])

    assert shutil.which(finished.folder / python) or shutil.which(python)
    assert (*module, name) == ("-m", "orchestrator")
    assert done.returncode == 0, done.stderr
    assert command[-4:] == list(places)
    assert "The only table" in done.stdout


def test_plan_and_dry_run_print_the_same(finished):
    plan = finished("plan", "experiments.yaml", "--profile", "demo")
    dry = finished("run", "experiments.yaml", "--profile", "demo", "--dry-run")

    assert plan.returncode == dry.returncode == 0
    assert plan.stdout == dry.stdout
    assert plan.stdout.count(" done ") == 2


def test_a_changed_setting_is_planned_as_changed_with_its_reason(finished, tmp_path, data_root):
    yaml = (finished.folder / "experiments.yaml").read_text().replace("epochs: 3", "epochs: 5")
    other = Shell(tmp_path, data_root, yaml)

    plan = other("plan", "experiments.yaml", "--results", finished.folder / "results", "--json")

    assert [item["action"] for item in json.loads(plan.stdout)] == ["changed", "changed"]
    assert json.loads(plan.stdout)[0]["reason"] == "epochs 3 → 5"


def test_a_plan_writes_nothing(tmp_path, data_root):
    shell = Shell(tmp_path, data_root)

    assert shell("plan", "experiments.yaml").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["experiments.yaml"]


def test_a_plan_creates_no_database_for_a_mistyped_url(tmp_path, data_root):
    done = Shell(tmp_path, data_root)("plan", "experiments.yaml", "--store", "sqlite:///typo.db")

    assert done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["experiments.yaml"]


def test_an_unusable_storage_is_an_error_before_anything_is_queued(tmp_path, data_root):
    done = Shell(tmp_path, data_root)("run", "experiments.yaml", "--storage", "nonsense://x")

    assert done.returncode == 2
    assert "--storage nonsense://x: is not writable" in done.stderr
    assert statuses_of(tmp_path) == {}


def test_status_as_json_is_json_only(finished):
    status = finished("status", "experiments.yaml", "--json")

    assert [
        (item["run_id"], item["state"], item["epoch"]) for item in json.loads(status.stdout)
    ] == [
        (0, "done", 3),
        (11, "done", 3),
    ]


def test_report_draws_figures_and_checks_invariants(finished, tmp_path, data_root):
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    shell = Shell(tmp_path, data_root)
    good = shell("report", "experiments.yaml", "--figures", "--check")
    database = sqlite3.connect(tmp_path / "results" / "store.db")
    database.execute("UPDATE metrics SET value = 0.999 WHERE name = 'cra_1' AND epoch = 3")
    database.commit()
    database.close()
    unchecked = shell("report", "experiments.yaml")
    bad = shell("report", "experiments.yaml", "--check")

    assert good.returncode == 0, good.stderr
    assert "5 figures in results/demo/figures" in good.stderr
    assert (tmp_path / "results" / "demo" / "figures" / "curves-only.svg").exists()
    assert (unchecked.returncode, bad.returncode) == (0, 4)
    assert "violated: run 0, seed 0: cra_1 0.9990 is above cra_108" in bad.stderr
    assert "2 invariants" in bad.stderr or "4 invariants" in bad.stderr


def test_runs_can_be_compared_and_evaluated_at_any_radius(finished):
    comparison = finished("compare", "0", "11", "--profile", "demo")
    any_radius = finished("cra", "--radius", "0.25", "--json")
    fraction = finished("cra", "--radius", "36/255", "--json")
    endless = finished("cra", "--radius", "1e400")
    itself = finished("compare", "0", "0")
    wrong = finished("compare", "0", "7")

    assert comparison.returncode == any_radius.returncode == 0, comparison.stderr
    assert comparison.stdout.startswith("demo: not comparable\n\n")
    assert "McNemar's p" in comparison.stdout
    assert (itself.returncode, itself.stderr) == (
        2,
        "Error: run 0 cannot be compared with itself; name two runs\n",
    )
    assert [one["run_id"] for one in json.loads(any_radius.stdout)] == [0, 11]
    assert [one["radius"] for one in json.loads(fraction.stdout)] == [36 / 255] * 2
    assert (endless.returncode, endless.stderr) == (
        2,
        "Error: --radius: '1e400' is not a radius; write a number that is not negative, like 0.5 "
        "or 36/255\n",
    )
    assert wrong.returncode == 2
    assert "there is no run 7" in wrong.stderr


def test_the_views_cells_are_those_of_the_report(finished):
    sql = "SELECT measured, seeds, difference FROM v_cells WHERE profile = 'demo' ORDER BY place"
    view = json.loads(finished("query", sql, "--json").stdout)
    report = finished("report", "experiments.yaml", "--profile", "demo", "--format", "json")
    cells = json.loads(report.stdout)["cells"]

    assert len(view) == len(cells) == 4
    for row, cell in zip(view, cells, strict=True):
        assert row == {name: pytest.approx(cell[name]) for name in row}


def test_a_run_that_mlflow_does_not_receive_exits_with_1(trained, tmp_path):
    shell = trained.copy(tmp_path)
    shell.environment |= UNREACHABLE_MLFLOW
    with sqlite3.connect(tmp_path / "results" / "store.db") as database:
        database.execute("UPDATE runs SET mlflow_status = NULL")
    database.close()
    done = shell("run", "experiments.yaml", "--profile", "demo")

    assert done.returncode == 1
    assert "MLflow at http://127.0.0.1:9: " in done.stderr
    assert "The store is complete; `sync` sends it to MLflow." in done.stderr


@pytest.mark.parametrize("options", [(), ("--figures",), ("--format", "html")])
def test_a_report_that_cannot_be_written_is_one_line(finished, options):
    with read_only(finished.folder / "results"):
        done = finished("report", "experiments.yaml", *options)
    lines = done.stderr.splitlines()

    assert done.returncode == 1
    assert len(lines) == 1, done.stderr
    assert re.match(r"Error: results/demo/.* cannot be written: .*Read-only file", lines[0])
    assert "html" in options or "| AOL-Small |" in done.stdout


def test_a_full_disk_is_one_line_of_every_command(tmp_path, monkeypatch, capsys):
    with small_disk(tmp_path / "full", "4k") as full:
        monkeypatch.setattr(
            "orchestrator.cli.app", lambda **_: (full / "x").write_bytes(bytes(10_000))
        )
        with pytest.raises(SystemExit) as ended:
            program.main()

    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("Error: No space left on device; free some space")


CELL = "The only table/AOL-Conv/Std Acc"


def last_command(shell):
    """
    Return the cell as JSON, and the arguments of the last command that is printed for it.
    """
    (cell,) = json.loads(shell("explain", CELL, "--profile", "demo", "--json").stdout)
    return cell, shlex.split(cell["runs"][0]["commands"][-1])[3:]


def test_a_cell_is_explained_with_a_command_that_trains_its_run_again(finished):
    text = finished("explain", CELL, "--profile", "demo")
    cell, command = last_command(finished)
    plan = finished("plan", *command[1:], "--json")
    wrong = finished("explain", "The only table/AOL-Con/Std Acc")

    assert text.returncode == 0, text.stderr
    assert text.stdout.startswith(f"demo: not comparable\n\n{CELL}\n  differs: ")
    assert command[0] == "run"
    assert [(item["key"], item["action"]) for item in json.loads(plan.stdout)] == [
        (cell["runs"][0]["key"], "new")
    ]
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert f"the closest is '{CELL}'" in wrong.stderr


@pytest.mark.slow
def test_the_last_command_of_a_cell_reproduces_its_value(finished, monkeypatch):
    cell, command = last_command(finished)
    monkeypatch.setitem(finished.environment, "MLFLOW_TRACKING_URI", "sqlite:///again.db")
    again = finished.process(*command)
    found = finished("explain", CELL, "--profile", "demo", "--json", "--results", "again")
    (other,) = json.loads(found.stdout)

    assert again.returncode == 0, again.stderr
    assert other["measured"] == cell["measured"]
    assert other["runs"][0]["key"] == cell["runs"][0]["key"]


def test_missing_and_budget_need_no_store(finished):
    paper = ("experiments.yaml", "--profile", "paper")
    missing = finished("missing", *paper, "--only", "11", "--json")
    nothing = finished("missing", *paper, "--results", "nowhere", "--table", "only")
    budget = finished("plan", *paper, "--budget", "1000gpuh", "--results", "nowhere")
    wrong = finished("plan", *paper, "--budget", "40")
    lonely = finished("plan", *paper, "--table", "only")
    seeds = finished("plan", *paper, "--budget", "40gpuh", "--seeds", "0..4")

    assert [cell["run_id"] for cell in json.loads(missing.stdout)["cells"]] == [11, 11]
    assert "4 of 4 cells are unresolved" in nothing.stdout
    assert budget.stdout.splitlines()[-1] == (
        "python -m orchestrator run experiments.yaml --profile paper --results nowhere "
        "--only 11,0 --seeds 0"
    )
    assert not (finished.folder / "nowhere").exists()
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "Error: --budget 40: write for example 40gpuh or 100usd\n",
    )
    assert lonely.returncode == 2
    assert "--table requires --budget" in lonely.stderr
    assert (seeds.returncode, seeds.stdout, seeds.stderr) == (
        2,
        "",
        "Error: --seeds 0..4: cannot be combined with --budget, which chooses the seeds\n",
    )


def test_a_query_can_read_but_not_write(finished):
    sql = "SELECT run_id, value FROM v_final WHERE metric = 'accuracy' ORDER BY run_id"
    found = finished("query", sql, "--json")
    table = finished("query", sql)
    bytes_ = finished("query", "SELECT * FROM margins")
    written = finished("query", "DELETE FROM metrics")
    wrong = finished("query", "SELECT 1 FROM nowhere")

    assert [row["run_id"] for row in json.loads(found.stdout)] == [0, 11]
    assert table.stdout.split()[:2] == ["run_id", "value"]
    assert bytes_.stdout.count("<400 bytes>") == 2
    assert (written.returncode, written.stderr) == (
        2,
        "Error: not authorized; only reading is allowed\n",
    )
    assert (wrong.returncode, wrong.stderr) == (2, "Error: no such table: nowhere\n")
    assert json.loads(finished("query", sql, "--json").stdout) == json.loads(found.stdout)


def test_watching_cannot_be_combined_with_all_runs(finished):
    status = finished("status", "experiments.yaml", "--watch", "--all")

    assert status.returncode == 2
    assert "--watch cannot be combined with --json or --all" in " ".join(status.stderr.split())


def test_status_of_a_profile_without_runs_lists_the_profiles_with_runs(finished):
    status = finished("status", "experiments.yaml", "--profile", "dmo")

    assert status.returncode == 2
    assert "no run has the profile 'dmo'; the profiles: demo" in " ".join(status.stderr.split())


def test_a_report_after_changed_settings_explains_how_to_report_those(
    finished, tmp_path, data_root
):
    shell = Shell(tmp_path, data_root)
    shutil.copytree(finished.folder / "results", tmp_path / "results")
    database = sqlite3.connect(tmp_path / "results" / "store.db")
    database.execute(
        "UPDATE runs SET profile = 'custom', finished_at = '3000-01-01T00:00Z' WHERE run_id = 0"
    )
    database.commit()
    database.close()
    report = shell("report", "experiments.yaml")

    assert report.returncode == 0
    assert "profile `demo`" in report.stdout
    assert "pass the same --set to report it" in report.stderr


def test_a_report_that_cannot_be_written_is_a_one_line_error(finished, tmp_path):
    (tmp_path / "demo").write_text("no folder")
    store = finished.folder / "results" / "store.db"
    report = finished("report", "experiments.yaml", "--results", tmp_path, "--store", store)

    assert report.returncode == 1
    assert report.stderr.count("\n") == 1
    assert "demo/tables.md: cannot be written" in report.stderr


@pytest.mark.parametrize("form", ["md", "csv", "json"])
def test_report_prints_and_writes_every_format(finished, form):
    report = finished("report", "experiments.yaml", "--profile", "demo", "--format", form)

    written = (finished.folder / "results" / "demo" / f"tables.{form}").read_text()
    assert report.returncode == 0
    assert report.stdout.strip() == written.strip()
    assert "70.3" in written


def test_a_report_of_another_profile_has_no_values_of_these_runs(finished):
    report = finished("report", "experiments.yaml", "--profile", "paper", "--format", "json")

    assert {cell["measured"] for cell in json.loads(report.stdout)["cells"]} == {None}


@pytest.mark.slow
def test_sync_rebuilds_a_lost_mlflow_database(finished, tmp_path, data_root):
    other = Shell(tmp_path, data_root)

    done = other("sync", "experiments.yaml", "--store", finished.folder / "results/store.db")

    database = sqlite3.connect(tmp_path / "mlflow.db")
    count = database.execute("SELECT count(*) FROM tags WHERE key = 'run_id'").fetchone()
    database.close()
    assert done.returncode == 0
    assert count == (2,)


def test_the_default_profile_without_a_gpu_is_the_demo_with_a_note(tmp_path, data_root):
    yaml = (PROJECT / "experiments.yaml").read_text(encoding="utf-8")
    shell = Shell(tmp_path, data_root, yaml)

    plan = shell("plan", "experiments.yaml")

    assert re.search(r"No GPU found: the profile `paper` would take about \d+ days", plan.stderr)
    assert "digit-pairs" in plan.stdout


def test_data_prepares_the_images_and_prints_their_folder(finished):
    done = finished("data", "experiments.yaml", "--profile", "demo")

    assert done.returncode == 0
    assert done.stdout.startswith("digits: checked, in ")


def test_images_without_a_source_are_an_error_with_exit_code_1(tmp_path):
    shell = Shell(tmp_path, tmp_path / "empty")
    shell.environment["PATH"] = "/nowhere"
    done = shell("data", "experiments.yaml", "--set", "data.name=cifar100")

    assert done.returncode == 1
    assert "no source has cifar100" in done.stderr
    assert "cifar100.npz" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["validate", "missing.yaml"], "missing.yaml: no such file"),
        (["validate", "."], "is a directory"),
        (["run", "experiments.yaml", "--only", "7"], "there is no run 7; the runs are 0, 11"),
        (["run", "experiments.yaml", "--only", "a-b"], "'a-b' is no number or range"),
        (["run", "experiments.yaml", "--set", "epoch=1"], "did you mean `epochs`?"),
        (["run", "experiments.yaml", "--set", "epochs=-1"], "epochs: must be positive"),
        (["run", "experiments.yaml", "--profile", "dmo"], "no profile 'dmo'"),
        (["run", "experiments.yaml", "--set", "resources.gpus=1"], "need 1 CPU and 1 GPU"),
        (["run", "experiments.yaml", "--set", "resources.cpus=4000"], "need 4000 CPUs"),
        (["plan", "experiments.yaml", "--set", "model.width=0.14"], "MaxMin pairs channels"),
        (["run", "experiments.yaml", "--rerun", "7"], "there is no run 7"),
        (
            ["run", "experiments.yaml", "--results", "experiments.yaml"],
            "cannot be used: [Err",
        ),
        (["status", "nofile.yaml"], "nofile.yaml: no such file"),
        (["report", "experiments.yaml", "--format", "pdf"], "pdf"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_a_usage_error_has_a_clear_message_and_exit_code_2(tmp_path, data_root, arguments, message):
    done = Shell(tmp_path, data_root)(*arguments)

    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results" / "ray").exists()


@pytest.mark.parametrize("command", ["status", "report", "validate", "missing"])
def test_commands_without_an_experiments_file_end_with_an_error(tmp_path, data_root, command):
    (tmp_path / "here").mkdir()
    shell = Shell(tmp_path / "here", data_root)
    (shell.folder / "experiments.yaml").unlink()
    done = shell(command)

    assert done.returncode == 2
    assert "experiments.yaml: no such file" in done.stderr


@pytest.mark.parametrize("command", ["status", "report", "sync"])
def test_reading_commands_without_a_store_end_with_an_error(tmp_path, data_root, command):
    done = Shell(tmp_path, data_root)(command, "experiments.yaml")

    assert done.returncode == 1
    assert "there is no store at results/store.db yet" in done.stderr


def test_an_unreachable_cluster_is_a_clear_error(tmp_path, data_root):
    done = Shell(tmp_path, data_root)("plan", "experiments.yaml", "--address", "127.0.0.1:1")

    assert done.returncode == 2
    assert "no Ray cluster at 127.0.0.1:1" in done.stderr


def test_a_second_driver_is_rejected(finished):
    from filelock import FileLock

    with FileLock(finished.folder / "results" / "store.db.lock"):
        done = finished("run", "experiments.yaml", "--profile", "demo")

    assert done.returncode == 1
    assert "another driver is writing" in done.stderr


def test_help_lists_every_command_without_heavy_imports():
    code = (
        "import sys, runpy\n"
        "sys.argv = ['orchestrator', '--help']\n"
        "try: runpy.run_module('orchestrator', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'numpy', 'scipy', 'matplotlib'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )

    assert "HEAVY []" in done.stdout
    training = ("run", "plan", "validate", "data", "ingest", "sync")
    for command in (*training, *("bundle", "verify", "merge"), *VIEWS):
        assert re.search(rf"^\s+{command}\s", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_a_rerun_trains_from_the_start_and_creates_a_new_mlflow_run(trained, tmp_path):
    from mlflow import MlflowClient

    shell = trained.copy(tmp_path)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--only", "11")
    before = [*(tmp_path / "results" / "ray").rglob("state.pt")]
    originals = files_of(trained.folder)

    again = shell.process(*arguments, "--rerun", "11")

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], "tags.run_id = '11'")
    assert again.returncode == 0, again.stderr
    assert "requested with --rerun" in again.stderr
    assert [len(client.get_metric_history(run.info.run_id, "accuracy")) for run in runs] == [3, 3]
    assert all(run.info.end_time for run in runs)
    (kept,) = [path for path in before if path.exists()]
    assert "0-s0-" in str(kept)
    assert files_of(trained.folder) == originals
    assert all(str(tmp_path) in run.info.artifact_uri for run in runs)


def files_of(folder):
    """
    Return the files of a results folder and of MLflow, with the times of their last change.
    """
    return {
        path: path.stat().st_mtime_ns
        for name in ("results", "mlruns")
        for path in (folder / name).rglob("*")
        if path.is_file()
    }


def test_the_table_of_the_readme_is_that_of_the_laptop():
    made = (PROJECT / "results" / "laptop" / "tables.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- laptop table -->\n(.*?)<!-- end", README, re.DOTALL).group(1)

    assert shown.count("\n") >= 5
    assert shown in made


def test_the_pictures_of_the_readme_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)

    assert pictures
    assert all((PROJECT / picture).is_file() for picture in pictures)


def test_every_make_target_of_the_readme_exists():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    known = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)

    assert {"run", "test"} <= set(targets) <= set(known)


def test_the_lock_file_names_no_index_and_pins_every_dependency():
    import tomllib

    lock = (PROJECT / "requirements.lock").read_text()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.match(r"[\w.-]+", item).group().lower() for item in wanted]

    assert "://" not in lock
    pinned = {re.match(r"[\w.-]+", line).group() for line in lock.splitlines() if "==" in line}
    assert {name.replace(".", "-") for name in names} <= pinned
