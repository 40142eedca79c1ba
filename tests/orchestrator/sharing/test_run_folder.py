import json
import re
import shutil
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text

from aol.cli.train import main
from orchestrator.analysis.tables import fill_tables
from orchestrator.errors import RecordError, StoreError
from orchestrator.planning.plan import Action, as_rows, make_plan
from orchestrator.sharing.merge import ingest_run
from orchestrator.sharing.run_folder import find_run_folders, read_run_folder
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store
from tests.support.shell import TINY, Shell


@pytest.fixture(scope="module")
def box(tmp_path_factory, data_root):
    """
    Return a folder with runs of the tiny experiment by `python -m aol`: run 0 done, run 11
    diverged.
    """
    folder = tmp_path_factory.mktemp("box")
    yaml = TINY.replace("seed: 11,", "seed: 11, optimizer: {learning_rate: 1e30},")
    (folder / "experiments.yaml").write_text(yaml, encoding="utf-8")
    experiment = SpecFile(folder / "experiments.yaml").experiment("demo")
    (folder / "plan.json").write_text(json.dumps(as_rows(make_plan(experiment, []))))
    arguments = ["--config", folder / "plan.json", "--data", data_root, "--out", folder / "out"]
    main([*map(str, arguments), "--device", "cpu"])
    return folder


@pytest.fixture
def out(box, tmp_path):
    shutil.copytree(box / "out", tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "store.db")
    yield opened
    opened.close()


def of_run(out, number):
    (found,) = out.glob(f"{number}-*")
    return found


def test_ingested_runs_are_stored_like_runs_trained_here(box, out, store):
    assert [ingest_run(read_run_folder(folder), store) for folder in find_run_folders(out)] == [
        True,
        True,
    ]

    done, diverged = store.runs()
    facts = json.loads((of_run(out, 0) / "attempts.jsonl").read_text())
    last = json.loads((of_run(out, 0) / "metrics.jsonl").read_text().splitlines()[-1])
    experiment = SpecFile(box / "experiments.yaml").experiment("demo")
    assert (done.status, done.epoch, done.recorded) == (Status.DONE, 3, 3)
    (attempt,) = store.attempts(done.key)
    assert (done.host, done.git_commit) == (facts["host"], facts["commit"])
    assert (attempt.host, attempt.git_commit) == (facts["host"], facts["commit"])
    assert attempt.packages == facts["packages"]
    assert done.started_at == facts["time"]
    assert done.certificate["violations"] == []
    assert store.recorded_at(done.key)[3] == last["time"]
    assert store.metrics(done.key)[3] == last["values"]
    assert store.margins(done.key) == (of_run(out, 0) / "margins.f32").read_bytes()
    assert diverged.status is Status.DIVERGED
    assert "no finite loss" in diverged.error
    actions = [item.action for item in make_plan(experiment, store.runs())]
    assert actions == [Action.DONE, Action.DIVERGED]
    (cells, _) = fill_tables(experiment, store)[0].cells
    assert cells[0].measured == 100 * last["values"]["accuracy"]


def test_ingesting_a_folder_again_changes_nothing(out, store):
    found = read_run_folder(of_run(out, 0))
    ingest_run(found, store)
    before = store.runs()

    assert ingest_run(found, store) is False
    assert store.runs() == before


def test_a_run_with_more_epochs_is_ingested_again_and_one_with_fewer_is_not(out, store):
    whole = of_run(out, 0)
    half = out / "half"
    shutil.copytree(whole, half)
    (half / "end.json").unlink()
    (half / "margins.f32").unlink()
    lines = (half / "metrics.jsonl").read_text().splitlines()
    (half / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n{lines[2][:20]}")

    assert ingest_run(read_run_folder(half), store)
    assert [(run.status, run.epoch) for run in store.runs()] == [(Status.INTERRUPTED, 2)]
    assert ingest_run(read_run_folder(whole), store)
    assert ingest_run(read_run_folder(half), store) is False
    (half / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text())
    assert ingest_run(read_run_folder(half), store) is False
    assert [(run.status, run.epoch) for run in store.runs()] == [(Status.DONE, 3)]


def test_other_metrics_of_a_run_are_a_conflict_without_replace(out, store):
    found = read_run_folder(of_run(out, 0))
    ingest_run(found, store)
    file = of_run(out, 0) / "metrics.jsonl"
    file.write_text(file.read_text().replace('"train_loss": ', '"train_loss": 1', 1))
    other = read_run_folder(of_run(out, 0))

    with pytest.raises(RecordError, match="has different metrics in epoch 1: "):
        ingest_run(other, store)
    assert ingest_run(other, store, replace=True)
    assert store.metrics(found.run.key)[1] == other.epochs[0].values


def test_a_run_that_cannot_be_written_leaves_the_store_unchanged(out, store):
    """
    The disk is full when the margins are written, after all epochs.
    """
    found = read_run_folder(of_run(out, 0))
    ingest_run(found, store)
    before = store.runs(), store.metrics(found.run.key)
    raw = store.engine.raw_connection()
    pages = raw.execute("PRAGMA page_count").fetchone()[0]
    raw.execute(f"PRAGMA max_page_count = {pages}")
    raw.close()  # the pool hands this connection out again

    with pytest.raises(StoreError, match="database or disk is full"):
        ingest_run(
            replace(found, epochs=found.epochs[::-1], margins=bytes(10**6)), store, replace=True
        )
    assert (store.runs(), store.metrics(found.run.key)) == before


def test_every_call_that_trained_a_run_is_stored_as_an_attempt_with_its_times(out, store):
    folder = of_run(out, 0)
    first = json.loads((folder / "attempts.jsonl").read_text())
    later = first | {"from_epoch": 2, "host": "other", "time": "2030-01-01T00:00:00.000+00:00"}
    (folder / "attempts.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(later)}\n")
    (folder / "end.json").unlink()
    found = read_run_folder(folder)
    ingest_run(found, store)

    with store.engine.connect() as connection:
        rows = connection.execute(
            text("SELECT from_epoch, started_at, finished_at, outcome FROM attempts ORDER BY id")
        )
        attempts = [tuple(row) for row in rows]
    assert attempts == [
        (0, first["time"], later["time"], "interrupted"),
        (2, later["time"], found.epochs[-1].time, "interrupted"),
    ]
    (run,) = store.runs()
    assert (run.host, run.recorded) == ("other", 3)
    assert (run.started_at, run.finished_at) == (first["time"], found.epochs[-1].time)


def without_an_epoch(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[1:]))


def with_a_damaged_line(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text(lines[0] + "{" + "".join(lines[1:]))


def with_other_margins(folder):
    values = np.fromfile(folder / "margins.f32", "<f4")
    (-values).tofile(folder / "margins.f32")


def with_short_margins(folder):
    (folder / "margins.f32").write_bytes((folder / "margins.f32").read_bytes()[:-3])


def with_other_settings(folder):
    described = json.loads((folder / "run.json").read_text())
    described["settings"]["epochs"] = 2
    (folder / "run.json").write_text(json.dumps(described))


def with_other_images(folder):
    facts = json.loads((folder / "attempts.jsonl").read_text())
    facts["fingerprints"] = {"train": "0", "test": "0"}
    (folder / "attempts.jsonl").write_text(json.dumps(facts))


def without_attempts(folder):
    (folder / "attempts.jsonl").unlink()


def with_empty_attempts(folder):
    (folder / "attempts.jsonl").write_text("")


def with_a_nan_loss(folder):
    file = folder / "metrics.jsonl"
    file.write_text(
        re.sub(r'"train_loss": [0-9.]+', '"train_loss": NaN', file.read_text(), count=1)
    )


def with_a_nan_margin(folder):
    values = np.fromfile(folder / "margins.f32", "<f4")
    values[3] = np.nan
    values.tofile(folder / "margins.f32")


def without_a_key(folder):
    described = json.loads((folder / "run.json").read_text())
    del described["key"]
    (folder / "run.json").write_text(json.dumps(described))


def with_an_unknown_outcome(folder):
    (folder / "end.json").write_text('{"outcome": "well", "time": "2026-01-01T00:00:00+00:00"}')


def with_settings_of_another_version(folder):
    described = json.loads((folder / "run.json").read_text())
    described["settings"]["dropout"] = 0.5
    (folder / "run.json").write_text(json.dumps(described))


def with_a_dict_as_the_name_of_the_images(folder):
    described = json.loads((folder / "run.json").read_text())
    described["settings"]["data"]["name"] = {"digits": 1}
    (folder / "run.json").write_text(json.dumps(described))


def with_deep_json(folder):
    (folder / "end.json").write_text("[" * 200_000)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_a_dict_as_the_name_of_the_images, "run.json: settings: are not those of this"),
        (with_deep_json, "end.json is damaged: it is nested too deeply"),
        (without_an_epoch, "does not have every epoch once, in order"),
        (with_a_damaged_line, "metrics.jsonl, line 2 is damaged: "),
        (with_other_margins, "the accuracy of margins.f32 is not that of the last epoch"),
        (with_short_margins, "margins.f32 does not have a finite margin for every"),
        (
            with_a_nan_margin,
            "margins.f32 does not have a finite margin for every",
        ),
        (
            with_a_nan_loss,
            "line 1: values.train_loss: must be a finite number",
        ),
        (without_a_key, "run.json: key: is missing"),
        (with_an_unknown_outcome, "outcome: must be done, unsound or diverged, got 'well'"),
        (
            with_settings_of_another_version,
            "run.json: settings: are not those of this version",
        ),
        (with_other_settings, ", and settings of 0-s0-"),
        (with_other_images, "it was trained on other images than digits"),
        (without_attempts, "cannot be read: [Errno 2] No such file"),
        (with_empty_attempts, "attempts.jsonl is empty: it names no machine"),
    ],
)
def test_a_damaged_folder_is_refused_with_the_reason(out, damage, message):
    damage(of_run(out, 0))

    with pytest.raises(RecordError) as caught:
        read_run_folder(of_run(out, 0))
    assert message in str(caught.value)
    assert str(of_run(out, 0)) in str(caught.value)


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(RecordError, match=r"no run\.json there or one level below"):
        find_run_folders(tmp_path)


@pytest.mark.usefixtures("sketched_figures")
def test_the_command_fills_store_and_mlflow_and_lists_the_runs(
    box, out, tmp_path, data_root, empty_mlflow
):
    shell = Shell(tmp_path / "here", data_root, (box / "experiments.yaml").read_text())
    shutil.copy(empty_mlflow, shell.folder / "mlflow.db")

    first, second = shell("ingest", out), shell("ingest", out)

    database = sqlite3.connect(tmp_path / "here" / "mlflow.db")
    (count,) = database.execute("SELECT count(*) FROM tags WHERE key = 'run_id'").fetchone()
    database.close()
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "run 0 AOL-Small, seed 0: done, 3 epochs" in first.stdout
    assert "run 0 AOL-Small, seed 0: unchanged" in second.stdout
    assert count == 2


@pytest.mark.usefixtures("sketched_figures")
def test_the_other_folders_are_ingested_if_one_is_damaged(
    box, out, tmp_path, data_root, empty_mlflow
):
    shell = Shell(tmp_path / "here", data_root, (box / "experiments.yaml").read_text())
    shutil.copy(empty_mlflow, shell.folder / "mlflow.db")
    with_a_nan_loss(of_run(out, 0))
    done = shell("ingest", out)

    assert done.returncode == 1
    assert "run 11 AOL-Conv, seed 11: diverged" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "metrics.jsonl, line 1: values.train_loss" in done.stderr
