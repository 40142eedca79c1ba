import errno
import os
import shutil
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import text

from aol.config import OptimizerConfig, flatten
from orchestrator.errors import StoreError, TrackingError
from orchestrator.provenance import Provenance
from orchestrator.reporting.figures.draw import FORMATS
from orchestrator.scheduling.events import EpochDone, Finished, Placed, Saved, Started, Tick
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Checkpoint, Status, Store
from orchestrator.tracking import Tracker, TrackingRecorder, tracker_for, tracking_uri
from orchestrator.tracking.mapping import METRICS_PER_CALL, PARAM_LENGTH
from orchestrator.tracking.publish import publish, publish_all
from orchestrator.tracking.recorder import RETRY_S
from tests.support.mounts import read_only
from tests.support.reports import finish
from tests.support.shell import TINY

ORIGIN = Provenance("abc", {}, "d-d")
DEAD = "http://127.0.0.1:9"


@pytest.fixture
def new_tracker(empty_mlflow, tmp_path):
    """
    Creates trackers of one experiment, each with its own MLflow database.
    """
    made = []

    def make():
        folder = tmp_path / f"mlflow-{len(made)}"
        folder.mkdir()
        shutil.copy(empty_mlflow, folder / "mlflow.db")
        made.append(Tracker(f"sqlite:///{folder}/mlflow.db", "tiny", folder / "mlruns"))
        return made[-1]

    return make


@pytest.fixture
def tracker(new_tracker):
    return new_tracker()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.db")
    yield store
    store.close()


@pytest.fixture
def run(make_run, store):
    run = make_run(7)
    start(store, run)
    return run


def start(store, run):
    store.queue([run])
    store.start(run, ORIGIN)
    store.set_placement(run.key, "host", "CPU", 0)


def record(store, run, *epochs, plus=0):
    """
    Record epochs, each with a checkpoint, because only final epochs are sent.
    """
    for epoch in epochs:
        store.record(run.key, epoch, {"train_loss": 1 / epoch, "accuracy": epoch / 10 + plus})
        store.add_checkpoint(run.key, Checkpoint(epoch, f"/c/{epoch}"))


def client_of(tracker):
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri)


def mlflow_runs(tracker):
    """
    All runs in MLflow.
    """
    client = client_of(tracker)
    experiments = [one.experiment_id for one in client.search_experiments()]
    return list(client.search_runs(experiments))


def history(tracker, run_id, name):
    return [(one.step, one.value) for one in client_of(tracker).get_metric_history(run_id, name)]


def test_one_experiment_with_one_run_per_run(tracker, store, run, make_run):
    start(store, make_run(8))
    sent = tracker.send(store)
    experiments = [one.name for one in client_of(tracker).search_experiments()]

    assert sent == 2
    assert sorted(experiments) == ["Default", "tiny"]
    assert {one.info.run_name for one in mlflow_runs(tracker)} == {
        "7 AOL-Small (digits, seed 7)",
        "8 AOL-Small (digits, seed 8)",
    }


def test_a_run_has_its_settings_as_params_and_its_origin_as_tags(tracker, store, run):
    tracker.send(store)
    (found,) = mlflow_runs(tracker)
    expected = {
        "aol.key": run.key,
        "run_id": "7",
        "model": "AOL-Small",
        "dataset": "digits",
        "profile": "demo",
        "seed": "7",
        "digest": run.train.digest(),
        "status": "running",
        "git_commit": "abc",
        "host": "host",
        "device": "CPU",
    }

    assert found.data.params == {name: str(value) for name, value in flatten(run.train).items()}
    assert expected.items() <= found.data.tags.items()
    assert store.runs()[0].mlflow_run_id == found.info.run_id


def test_metrics_are_sent_per_epoch_and_never_twice(tracker, store, run):
    record(store, run, 1, 2)
    tracker.send(store)
    tracker.send(store)
    record(store, run, 3)
    tracker.send(store, [run.key])
    (found,) = mlflow_runs(tracker)

    assert history(tracker, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert history(tracker, found.info.run_id, "epoch") == [(1, 1), (2, 2), (3, 3)]
    assert set(found.data.metrics) == {"train_loss", "accuracy", "epoch"}


def test_another_process_sends_only_new_epochs(tracker, store, run):
    record(store, run, 1, 2)
    tracker.send(store)
    record(store, run, 3)
    Tracker(tracker.uri, "tiny", tracker.artifacts).send(store)
    (found,) = mlflow_runs(tracker)

    assert history(tracker, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2), (3, 0.3)]


def accuracies(tracker, run):
    """
    All accuracies of a run in MLflow, in a list per epoch.
    """
    (found,) = [one for one in mlflow_runs(tracker) if one.data.tags["aol.key"] == run.key]
    values = {}
    for epoch, value in history(tracker, found.info.run_id, "accuracy"):
        values.setdefault(epoch, []).append(value)
    return values


def test_epochs_that_may_be_trained_again_are_not_sent_yet(tracker, store, run):
    """
    Epochs after the newest checkpoint are not final, and MLflow cannot delete metrics.
    """
    record(store, run, 1, 2)
    store.record(run.key, 3, {"accuracy": 0.3})
    tracker.send(store)
    while_training = accuracies(tracker, run)
    store.finish(run.key, Status.INTERRUPTED)
    tracker.send(store)
    interrupted = accuracies(tracker, run)
    store.finish(run.key, Status.DONE)
    tracker.send(store)

    assert while_training == interrupted == {1: [0.1], 2: [0.2]}
    assert accuracies(tracker, run) == {1: [0.1], 2: [0.2], 3: [0.3]}


def test_a_retry_with_other_values_logs_each_epoch_once(tracker, store, run):
    """
    Training on a GPU is not deterministic: epochs 3 and 4 differ the second time.
    """
    record(store, run, 1, 2)
    for epoch in (3, 4):
        store.record(run.key, epoch, {"accuracy": epoch / 10})
        tracker.send(store)
    store.start(run, ORIGIN)
    tracker.send(store)
    record(store, run, 3, 4, plus=0.5)
    tracker.send(store)
    store.finish(run.key, Status.DONE)
    tracker.send(store)

    assert accuracies(tracker, run) == {1: [0.1], 2: [0.2], 3: [0.8], 4: [0.9]}


def test_a_retry_from_before_a_lost_checkpoint_replaces_mlflows_run(tracker, store, run):
    """
    The newest checkpoint could not be read, so epochs that are in MLflow are trained again.
    """
    record(store, run, 1, 2, 3)
    tracker.send(store)
    (before,) = mlflow_runs(tracker)
    store.start(run, ORIGIN)
    record(store, run, 2, plus=0.5)
    tracker.send(store)
    early = accuracies(tracker, run)
    record(store, run, 3, 4, plus=0.5)
    tracker.send(store)
    (after,) = mlflow_runs(tracker)

    assert early == {1: [0.1], 2: [0.7]}
    assert accuracies(tracker, run) == {1: [0.1], 2: [0.7], 3: [0.8], 4: [0.9]}
    assert after.info.run_id == store.runs()[0].mlflow_run_id != before.info.run_id


def test_a_retry_is_detected_even_if_nothing_was_sent_meanwhile(tracker, store, run):
    record(store, run, 1, 2)
    tracker.send(store)
    record(store, run, 1, 2, plus=0.5)
    store.finish(run.key, Status.DONE)
    tracker.send(store)

    assert accuracies(tracker, run) == {1: [0.6], 2: [0.7]}


def test_an_interrupted_call_is_completed_later(tracker, store, run, monkeypatch):
    """
    The connection breaks after the first batch of a long run.
    """
    for epoch in range(1, 12):
        record(store, run, epoch)
        store.record(run.key, epoch, dict.fromkeys(map(str, range(100)), float(epoch)))
        store.add_checkpoint(run.key, Checkpoint(epoch, f"/c/{epoch}"))
    client = tracker._connect()
    log_batch, calls = client.log_batch, []

    def breaking(run_id, metrics=(), params=(), tags=()):
        calls.append(metrics)
        if len([call for call in calls if call]) == 2:
            raise ConnectionError("broken pipe")
        log_batch(run_id, metrics=metrics, params=params, tags=tags)

    monkeypatch.setattr(client, "log_batch", breaking)
    with pytest.raises(TrackingError, match="broken pipe"):
        tracker.send(store)
    tracker.send(store)
    (found,) = mlflow_runs(tracker)

    assert found.info.run_id == store.runs()[0].mlflow_run_id
    for name in ("0", "99", "epoch"):
        found_epochs = history(tracker, found.info.run_id, name)
        assert found_epochs == [(epoch, epoch) for epoch in range(1, 12)]


def test_times_are_those_of_the_store(tracker, store, run):
    """
    MLflow's time axis is right even after the loss of its database.
    """
    record(store, run, 1, 2)
    store.finish(run.key, Status.DONE)
    with store.engine.begin() as connection:
        for epoch in (1, 2):
            stamp = {"epoch": epoch, "stamp": f"2026-01-01T0{epoch}:00:00.000+00:00"}
            connection.execute(
                text("UPDATE epochs SET recorded_at = :stamp WHERE epoch = :epoch"), stamp
            )
        connection.execute(text("UPDATE runs SET started_at = '2026-01-01T00:00:00+00:00'"))
        connection.execute(text("UPDATE runs SET finished_at = '2026-01-01T03:00:00+00:00'"))
    tracker.send(store)
    (found,) = mlflow_runs(tracker)
    metrics = client_of(tracker).get_metric_history(found.info.run_id, "accuracy")
    midnight = 1_767_225_600_000
    hour = 3_600_000

    assert [one.timestamp for one in metrics] == [midnight + hour, midnight + 2 * hour]
    assert (found.info.start_time, found.info.end_time) == (midnight, midnight + 3 * hour)


def test_a_run_trained_again_from_the_start_has_its_new_metrics(tracker, store, run):
    """
    As after --rerun: the run was deleted in the store, but not in MLflow.
    """
    record(store, run, 1, 2)
    tracker.send(store)
    store.delete_run(run.key)
    start(store, run)
    record(store, run, 1, plus=0.6)
    tracker.send(store)
    run_id = store.runs()[0].mlflow_run_id

    assert history(tracker, run_id, "accuracy") == [(1, 0.7)]


def test_more_metrics_than_fit_into_one_call_are_all_sent(tracker, store, run):
    names = [f"metric_{number:03}" for number in range(100)]
    for epoch in range(1, 12):
        store.record(run.key, epoch, dict.fromkeys(names, float(epoch)))
    store.finish(run.key, Status.DONE)
    tracker.send(store)
    (found,) = mlflow_runs(tracker)

    assert len(names) * 11 > METRICS_PER_CALL
    assert found.data.metrics == dict.fromkeys([*names, "epoch"], 11.0)
    assert len(history(tracker, found.info.run_id, "metric_050")) == 11


def test_statuses_are_converted_to_those_of_mlflow(tracker, store, make_run):
    runs = {status: make_run(number) for number, status in enumerate(Status)}
    for run in runs.values():
        start(store, run)
    tracker.send(store)
    for status, run in runs.items():
        store.finish(run.key, status)
    tracker.send(store)

    assert {one.data.tags["status"]: one.info.status for one in mlflow_runs(tracker)} == {
        "pending": "SCHEDULED",
        "running": "RUNNING",
        "done": "FINISHED",
        "failed": "FAILED",
        "diverged": "FAILED",
        "unsound": "FAILED",
        "interrupted": "KILLED",
    }


def test_an_unsound_run_has_tags_with_the_reason_and_the_arithmetic(tracker, store, run):
    store.finish(run.key, Status.UNSOUND, error="layer 1", certificate={"arithmetic": "float64"})
    tracker.send(store)
    (found,) = mlflow_runs(tracker)

    assert found.info.status == "FAILED"
    assert found.data.tags["unsound"] == "layer 1"
    assert found.data.tags["certified_in"] == "float64"


def test_another_failure_has_no_unsound_tag(tracker, store, run):
    store.finish(run.key, Status.FAILED, error="no memory")
    tracker.send(store)

    assert not {"unsound", "certified_in"} & set(mlflow_runs(tracker)[0].data.tags)


def test_a_resumed_run_is_running_again(tracker, store, run):
    store.finish(run.key, Status.INTERRUPTED)
    tracker.send(store)
    store.start(run, ORIGIN)
    tracker.send(store)

    assert [one.info.status for one in mlflow_runs(tracker)] == ["RUNNING"]


def test_a_run_whose_mlflow_id_was_lost_is_found_by_its_tag(tracker, store, run):
    """
    The driver was killed after it created the MLflow run and before it stored the ID.
    """
    record(store, run, 1)
    tracker.send(store)
    (before,) = mlflow_runs(tracker)
    store.set_mlflow_run(run.key, None)
    tracker.send(store)
    (after,) = mlflow_runs(tracker)

    assert after.info.run_id == before.info.run_id == store.runs()[0].mlflow_run_id
    assert history(tracker, after.info.run_id, "accuracy") == [(1, 0.1)]


def test_runs_with_equal_settings_are_separate_mlflow_runs(tracker, store, make_run):
    for number in (0, 22):
        start(store, make_run(number, seed=0))
    tracker.send(store)

    assert len(mlflow_runs(tracker)) == 2


def test_a_lost_mlflow_database_is_rebuilt(new_tracker, store, run):
    """
    The store still has the IDs of runs in the lost database.
    """
    record(store, run, 1, 2)
    store.finish(run.key, Status.DONE)
    new_tracker().send(store)
    before = store.runs()[0].mlflow_run_id
    rebuilt = new_tracker()
    rebuilt.send(store)
    (found,) = mlflow_runs(rebuilt)

    assert found.info.run_id == store.runs()[0].mlflow_run_id != before
    assert history(rebuilt, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2)]
    assert found.info.status == "FINISHED"
    assert found.data.params["model.kind"] == "patchwise"


def test_a_run_deleted_in_mlflow_is_created_again(tracker, store, run):
    record(store, run, 1)
    tracker.send(store)
    (before,) = mlflow_runs(tracker)
    client_of(tracker).delete_run(before.info.run_id)
    tracker.send(store)
    (after,) = mlflow_runs(tracker)

    assert after.info.run_id != before.info.run_id
    assert history(tracker, after.info.run_id, "accuracy") == [(1, 0.1)]


def test_runs_that_never_started_are_not_sent(tracker, store, run, make_run):
    pending, stopped = make_run(8), make_run(9)
    store.queue([pending, stopped])
    store.finish(stopped.key, Status.INTERRUPTED)

    assert tracker.send(store) == 1
    assert [one.info.run_name[0] for one in mlflow_runs(tracker)] == ["7"]


@pytest.mark.parametrize("in_between", [False, True], ids=["before", "while connected"])
def test_an_experiment_deleted_in_mlflow_is_restored_with_its_runs(
    new_tracker, store, run, make_run, in_between
):
    tracker = new_tracker()
    record(store, run, 1)
    tracker.send(store)
    client = client_of(tracker)
    client.delete_experiment(client.get_experiment_by_name("tiny").experiment_id)
    record(store, run, 2)
    start(store, make_run(8))
    again = tracker if in_between else Tracker(tracker.uri, "tiny", tracker.artifacts)
    again.send(store)
    again.attach_tables("demo", "| a |")

    assert len(mlflow_runs(tracker)) == 2 + 1
    own = store.runs([run.key])[0].mlflow_run_id
    assert history(tracker, own, "accuracy") == [(1, 0.1), (2, 0.2)]


# The report


def reports_of(tracker):
    """
    Return the MLflow runs of reports, by profile.
    """
    runs = mlflow_runs(tracker)
    return {one.data.tags["aol.report"]: one for one in runs if "aol.report" in one.data.tags}


def tables_of(tracker):
    """
    Return the attached tables, by profile.
    """
    client, found = client_of(tracker), {}
    for profile, report in reports_of(tracker).items():
        path = client.download_artifacts(report.info.run_id, "tables/tables.md")
        found[profile] = Path(path).read_text(encoding="utf-8")
    return found


def figures_of(tracker, profile="demo"):
    """
    Return the names of the attached figures.
    """
    run_id = reports_of(tracker)[profile].info.run_id
    return [Path(file.path).name for file in client_of(tracker).list_artifacts(run_id, "figures")]


def figures_among(sent):
    """
    Return the calls that attach a figure; MLflow attaches texts as files, too.
    """
    return [given for given in sent if given[-1] == "figures"]


@pytest.fixture
def calls(tracker, monkeypatch):
    """
    Count the calls of a method of the tracker's client.
    """

    def count(name):
        client, counted = tracker._connect(), []
        method = getattr(client, name)
        monkeypatch.setattr(client, name, lambda *given: counted.append(given) or method(*given))
        return counted

    return count


def test_each_profile_has_one_report_with_its_tables(tracker, store, run, make_run):
    start(store, make_run(8))
    tracker.send(store)
    for profile in ("demo", "it's", "demo"):
        tracker.attach_tables(profile, f"| {profile} |")

    assert len(mlflow_runs(tracker)) == 2 + 2
    assert tables_of(tracker) == {"demo": "| demo |", "it's": "| it's |"}
    assert reports_of(tracker)["demo"].info.status == "FINISHED"


def test_tables_replace_earlier_ones_and_unchanged_ones_are_not_sent(tracker, calls):
    sent = calls("log_text")
    for tables in ("| a |", "| a |", "| b |"):
        tracker.attach_tables("demo", tables)

    assert len(sent) == 2
    assert tables_of(tracker) == {"demo": "| b |"}


def test_tables_of_every_profile_that_has_runs_are_published(tracker, store, make_run, tmp_path):
    """
    The tables of `--set` cannot be made from the file, so the written ones are sent.
    """
    (tmp_path / "experiments.yaml").write_text(TINY, encoding="utf-8")
    file = SpecFile(tmp_path / "experiments.yaml")
    for number, profile in enumerate(("demo", "paper", "custom", "gone")):
        start(store, make_run(number, profile=profile))
    tracker.send(store)
    (tmp_path / "results" / "custom").mkdir(parents=True)
    (tmp_path / "results" / "custom" / "tables.md").write_text("with --set", encoding="utf-8")
    publish_all(tracker, store, file, tmp_path / "results")
    found = tables_of(tracker)

    assert found.keys() == {"demo", "paper", "custom"}
    assert "results of the profile `demo`" in found["demo"]
    assert "results of the profile `paper`" in found["paper"]
    assert found["custom"] == "with --set"


def test_tables_that_cannot_be_attached_are_a_tracking_error(tracker):
    tracker.artifacts.write_text("a file where the folder should be")

    with pytest.raises(TrackingError, match=f"MLflow at {tracker.uri}: "):
        tracker.attach_tables("demo", "| a |")


@pytest.fixture
def finished(reported, store, tracker):
    """
    Two finished runs in MLflow; one of them is in one table only.
    """
    one, ablation = reported.tables
    alone = one.model_copy(update={"rows": one.rows[:1]})
    for run in reported.runs:
        finish(store, run, 0)
    tracker.send(store)
    return replace(reported, tables=(alone, ablation))


@pytest.mark.usefixtures("sketched_figures")
def test_the_report_has_every_figure_in_both_formats(tracker, store, finished):
    publish(tracker, store, finished)

    names = ["curves-ablation", "trade-off-ablation", "training-ablation", "paper-against-ours"]
    names += ["curves-one", "training-one"]
    assert tables_of(tracker).keys() == {"demo"}
    assert figures_of(tracker) == sorted(f"{name}.{form}" for name in names for form in FORMATS)


@pytest.mark.usefixtures("sketched_figures")
def test_each_figure_is_sent_once_however_many_runs_there_are(tracker, store, finished, calls):
    for replicate in finished.replicates(range(1, 6)).runs:
        finish(store, replicate, 0)
    tracker.send(store)
    sent = calls("log_artifact")
    publish(tracker, store, finished)

    assert len(figures_among(sent)) == len(figures_of(tracker)) == 2 * 6


@pytest.mark.usefixtures("sketched_figures")
def test_figures_are_sent_again_only_if_one_changed(tracker, store, finished, calls):
    publish(tracker, store, finished)
    sent = calls("log_artifact")
    publish(tracker, store, finished)
    unchanged = figures_among(sent)
    finish(store, finished.replicates([1]).runs[0], 0.5)
    publish(tracker, store, finished)

    assert unchanged == []
    assert len(figures_among(sent)) == len(figures_of(tracker))


def test_an_error_in_the_figures_is_reported_and_the_tables_are_sent(
    tracker, store, finished, monkeypatch
):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    recorder = TrackingRecorder(tracker, store)

    problem = recorder.close(60, partial(publish, tracker, store, finished))

    assert problem.startswith("the figures cannot be drawn: ")
    assert "No space left on device" in problem
    assert tables_of(tracker).keys() == {"demo"}


# MLflow's limits


def test_long_names_and_settings_are_truncated(new_tracker, store, make_run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    tracker = new_tracker()
    tracker.experiment = "e" * 1000
    drops = tuple(1 - 1 / number for number in range(2, 2000))
    run = make_run(1, name="n" * 9000, optimizer=OptimizerConfig(drops=drops))
    start(store, run)
    tracker.send(store)
    tracker.send(store)
    (found,) = mlflow_runs(tracker)

    assert found.info.run_name == ("1 " + "n" * 9000)[:250]
    assert found.data.tags["model"] == "n" * 8000
    assert found.data.params["optimizer.drops"] == str(drops)[:PARAM_LENGTH]


def test_params_missing_after_a_failure_are_sent_later(tracker, store, run, monkeypatch):
    client = tracker._connect()

    def broken(*_, **__):
        raise ConnectionError("broken pipe")

    monkeypatch.setattr(client, "log_batch", broken)
    with pytest.raises(TrackingError, match="broken pipe"):
        tracker.send(store)
    tracker.send(store)
    (found,) = mlflow_runs(tracker)

    assert found.data.params["model.kind"] == "patchwise"


def test_an_error_of_the_store_is_not_reported_as_one_of_mlflow(tracker, store, run):
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE epochs RENAME TO lost"))

    with pytest.raises(StoreError, match=r"the store /.* cannot be used"):
        tracker.send(store)


def test_the_environment_variable_overrides_the_default_uri(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own = tracking_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")

    assert own == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(tmp_path) == "http://server:5000"


def test_the_default_uri_of_a_folder_of_any_name_is_its_database(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / 'we?ird #1 & "ü" 100% %41'
    folder.mkdir()

    Tracker(tracking_uri(folder), "tiny", folder / "mlruns").send(Store("sqlite://"))

    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "mlflow.db").stat().st_size


def test_names_that_mlflow_rejects_are_changed(tracker, store, run):
    store.record(run.key, 1, {"../a/b?\n\x1b": 0.5})
    store.add_checkpoint(run.key, Checkpoint(1, "/c/1"))

    tracker.send(store)

    (found,) = mlflow_runs(tracker)
    assert found.data.metrics == {"___a_b___": 0.5, "epoch": 1.0}


# While runs train


def test_local_data_of_a_read_only_project_are_in_the_results(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project, results = tmp_path / "project", tmp_path / "results"
    project.mkdir()
    with read_only(project):
        found = tracker_for(project / "x.yaml", "tiny", results)
    usual = tracker_for(project / "x.yaml", "tiny", results)

    assert (found.uri, found.artifacts) == (f"sqlite:///{results}/mlflow.db", results / "mlruns")
    assert (usual.uri, usual.artifacts) == (f"sqlite:///{project}/mlflow.db", project / "mlruns")


@pytest.fixture
def dead_server(monkeypatch, tmp_path):
    """
    A tracker whose server does not answer.
    """
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    return Tracker(DEAD, "tiny", tmp_path / "mlruns")


def test_an_unreachable_server_is_a_tracking_error(dead_server, store, run):
    with pytest.raises(TrackingError, match=f"^MLflow at {DEAD}: "):
        dead_server.send(store)


def test_an_unreachable_server_is_reported_when_the_recorder_closes(dead_server, store, run):
    recorder = TrackingRecorder(dead_server, store)
    recorder(Started(run))
    recorder(Finished(run, Status.DONE))
    problem = recorder.close(30)

    assert problem.startswith(f"MLflow at {DEAD}: ")


def test_the_events_of_a_run_bring_mlflow_up_to_date(tracker, store, run):
    recorder = TrackingRecorder(tracker, store)
    recorder(Started(run))
    recorder(Placed(run, "host", "CPU", 0))
    for epoch in (1, 2):
        record(store, run, epoch)
        recorder(EpochDone(run, epoch, {}))
        recorder(Saved(run, Checkpoint(epoch, f"/c/{epoch}")))
    recorder(Tick())
    store.finish(run.key, Status.DONE)
    recorder(Finished(run, Status.DONE))
    problem = recorder.close(30)
    (found,) = mlflow_runs(tracker)

    assert problem is None
    assert found.info.status == "FINISHED"
    assert history(tracker, found.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2)]


class FakeTracker:
    """
    A tracker that fails a number of times and waits until its gate is open.
    """

    name = "fake"

    def __init__(self, failures=0, *, open_=True):
        self.failures, self.sent, self.tries = failures, [], 0
        self.gate, self.entered = threading.Event(), threading.Event()
        if open_:
            self.gate.set()

    def send(self, store, keys):
        self.tries += 1
        self.entered.set()
        self.gate.wait(10)
        if self.failures:
            self.failures -= 1
            raise TrackingError("down")
        self.sent.append(set(keys))


def test_a_slow_server_does_not_delay_training(run):
    slow = FakeTracker(open_=False)
    recorder = TrackingRecorder(slow, None)
    started = time.monotonic()
    for _ in range(1000):
        recorder(Started(run))
    took = time.monotonic() - started
    slow.entered.wait(10)
    late = recorder.close(0.05)
    slow.gate.set()

    assert took < 1
    assert late == "MLflow at fake is slow: it has not received everything yet"
    assert recorder.close(10) is None


def test_runs_that_changed_during_a_call_are_sent_in_the_next_one(run, make_run):
    other = make_run(8)
    tracker = FakeTracker(open_=False)
    recorder = TrackingRecorder(tracker, None)
    recorder(Started(run))
    assert tracker.entered.wait(10)
    for _ in range(100):
        recorder(Finished(run, Status.FAILED))
        recorder(Started(other))
    tracker.gate.set()
    problem = recorder.close(10)

    assert problem is None
    assert tracker.sent[0] == {run.key}
    assert set.union(*tracker.sent[1:]) == {run.key, other.key}
    assert len(tracker.sent) <= 3


class Clock:
    """
    A clock that the test moves.
    """

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def wait_until(true):
    while not true():
        time.sleep(0.001)


def test_a_failed_server_is_tried_again_after_a_minute_with_all_runs(run, make_run):
    """
    It is not tried earlier, because each try may take as long as the timeout.
    """
    early, late = make_run(8), make_run(9)
    tracker, clock = FakeTracker(failures=1), Clock()
    recorder = TrackingRecorder(tracker, None, clock)
    recorder(Started(run))
    wait_until(lambda: recorder.problem)
    clock.now += RETRY_S - 1
    recorder(Started(early))
    wait_until(recorder._changed.empty)
    in_between = tracker.tries
    clock.now += 1
    recorder(Started(late))
    wait_until(lambda: tracker.sent)
    problem = recorder.problem
    recorder.close(10)

    assert in_between == 1
    assert problem is None
    assert tracker.sent[0] == {run.key, early.key, late.key}


def test_a_recovered_server_gets_everything_at_the_end(run):
    tracker = FakeTracker(failures=1)
    recorder = TrackingRecorder(tracker, None, Clock())
    recorder(Started(run))
    wait_until(lambda: recorder.problem)
    problem = recorder.close(10)

    assert problem is None
    assert tracker.sent == [{run.key}]


def test_the_final_task_runs_after_everything_is_sent(run):
    tracker = FakeTracker()
    recorder = TrackingRecorder(tracker, None)
    recorder(Started(run))
    sent = []
    problem = recorder.close(10, lambda: sent.extend(tracker.sent))

    assert problem is None
    assert {run.key} in sent


def test_closing_does_not_wait_for_a_final_task_that_hangs(run):
    gate = threading.Event()
    recorder = TrackingRecorder(FakeTracker(), None)
    started = time.monotonic()
    problem = recorder.close(0.05, lambda: gate.wait(30))
    took = time.monotonic() - started
    gate.set()

    assert took < 5
    assert problem == "MLflow at fake is slow: it has not received everything yet"


def test_the_error_of_the_final_task_is_returned(run):
    def fail():
        raise TrackingError("MLflow at fake: refuses")

    assert TrackingRecorder(FakeTracker(), None).close(10, fail) == "MLflow at fake: refuses"


def test_outdated_runs_are_sent_without_an_event(run):
    tracker = FakeTracker()
    recorder = TrackingRecorder(tracker, None, outdated=[run.key])
    recorder.close(10)

    assert tracker.sent[0] == {run.key}


def test_the_status_sent_to_mlflow_is_stored(tracker, store, run):
    before = store.runs()[0].mlflow_status
    tracker.send(store)
    running = store.runs()[0].mlflow_status
    store.finish(run.key, Status.DONE)
    tracker.send(store)

    assert (before, running, store.runs()[0].mlflow_status) == (None, "running", "done")


def test_an_epoch_is_not_sent_before_its_checkpoint(run):
    tracker = FakeTracker()
    recorder = TrackingRecorder(tracker, None)
    recorder(EpochDone(run, 1, {}))
    wait_until(recorder._changed.empty)
    before = list(tracker.sent)
    recorder(Saved(run, Checkpoint(1, "/c/1")))
    wait_until(lambda: tracker.sent)
    recorder.close(10)

    assert before == []
    assert tracker.sent[0] == {run.key}


def test_ticks_and_placements_send_nothing(run):
    tracker = FakeTracker()
    recorder = TrackingRecorder(tracker, None)
    recorder(Tick())
    recorder(Placed(run, "host", "CPU", 0))
    recorder.close(10)

    assert all(sent == set() for sent in tracker.sent)


def test_an_unreadable_store_is_reported_when_the_recorder_closes(tracker, store, run):
    """
    The thread must report the error, because MLflow is incomplete.
    """
    with store.engine.begin() as connection:
        connection.execute(text("ALTER TABLE epochs RENAME TO lost"))
    recorder = TrackingRecorder(tracker, store)
    recorder(Started(run))

    assert recorder.close(10) is not None


def test_a_copied_project_keeps_its_artifacts_to_itself(tracker, store, run, tmp_path):
    """
    In MLflow, locations of artifacts are absolute.
    """
    record(store, run, 1)
    tracker.send(store)
    original, copy = tracker.artifacts.parent, tmp_path / "copy"
    shutil.copytree(original, copy)
    copied = Tracker(f"sqlite:///{copy}/mlflow.db", "tiny", copy / "mlruns")
    copied.send(store)

    for one, folder in ((tracker, original), (copied, copy)):
        (found,) = client_of(one).search_experiments(filter_string="name = 'tiny'")
        (sent,) = mlflow_runs(one)
        assert found.artifact_location == (folder / "mlruns").as_uri()
        assert sent.info.artifact_uri == f"{found.artifact_location}/{sent.info.run_id}/artifacts"


def test_a_shared_database_keeps_the_locations_of_its_artifacts(tracker, store, run, tmp_path):
    record(store, run, 1)
    tracker.send(store)
    elsewhere = Tracker(tracker.uri, "tiny", tmp_path / "elsewhere" / "mlruns")
    elsewhere.send(store)

    (found,) = client_of(tracker).search_experiments(filter_string="name = 'tiny'")
    assert found.artifact_location == tracker.artifacts.absolute().as_uri()
