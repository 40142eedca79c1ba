import logging
import re
import tempfile
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import ray

from orchestrator.errors import ResourceError, SchedulingError
from orchestrator.planning.resources import Cluster, Node, ResourceRequest
from orchestrator.scheduling import cluster as machines
from orchestrator.scheduling import tuner
from orchestrator.scheduling.events import EpochDone, Finished, Placed, Saved, Started, Tick
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status
from tests.support.mounts import small_disk
from tests.support.shell import TINY


@pytest.fixture(scope="module", autouse=True)
def quiet_ray():
    """
    Ignore warnings of Ray about its own sockets, deprecations and unclosed files.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def cluster():
    """
    Start one private cluster for all tests here, with two GPUs that exist in name only.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET")  # a GPU's worker is not to interpret its kernels
        with machines.connect("local", Cluster((Node(2.0, 2.0),))) as found:
            yield found


@pytest.fixture
def runs(tmp_path):
    """
    Return a function that returns the runs of the tiny experiment with changed settings.
    """
    (tmp_path / "experiments.yaml").write_text(TINY, encoding="utf-8")

    def make(*settings):
        return SpecFile(tmp_path / "experiments.yaml").experiment("demo", settings).runs

    return make


@pytest.fixture
def options(tmp_path, data_root):
    return tuner.SchedulingOptions(
        storage=str(tmp_path / "ray"),
        data_root=data_root,
        log_folder=tmp_path / "logs",
        checkpoint_seconds=0.01,
    )


class EventRecorder:
    def __init__(self):
        self.events = []

    def __call__(self, event):
        if not isinstance(event, Tick):
            self.events.append(event)

    def of(self, kind, run=None):
        chosen = [event for event in self.events if isinstance(event, kind)]
        return [event for event in chosen if run is None or event.run.key == run.key]


CPU = ResourceRequest(1.0, 0.0)


@pytest.mark.slow
def test_the_cluster_has_the_requested_resources_and_listens_on_loopback_only(cluster):
    import psutil

    assert (cluster.cpus, cluster.gpus) == (2.0, 2.0)
    listening = {
        connection.laddr.ip
        for child in psutil.Process().children(recursive=True)
        for connection in _connections(child)
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def _connections(process):
    import psutil

    try:
        return process.net_connections(kind="tcp")
    except psutil.Error:
        return []


class Broken:
    """
    A recorder that raises, and that Tune could not pickle.
    """

    def __call__(self, event):
        raise RuntimeError("disk on fire")

    def __reduce__(self):
        raise TypeError("never pickle me")


@pytest.fixture(scope="module")
def recorded(cluster, tmp_path_factory, data_root):
    """
    Return the events and the log of three runs: one that diverges, one without images and one
    without problems. A broken recorder takes part, and the storage is a URI.
    """
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "experiments.yaml").write_text(TINY, encoding="utf-8")
    file = SpecFile(folder / "experiments.yaml")
    fine, other = file.experiment("demo").runs
    diverging = file.experiment("demo", ["optimizer.learning_rate=1e30"]).runs[0]
    broken = replace_data(other)
    storage = (folder / "uri").as_uri()
    recorder, log = EventRecorder(), StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger("orchestrator").addHandler(handler)
    tuner.run_jobs(
        [tuner.Job(run, CPU) for run in (diverging, broken, fine)],
        [Broken(), recorder],
        tuner.SchedulingOptions(storage, data_root, folder / "logs", checkpoint_seconds=0.01),
    )
    logging.getLogger("orchestrator").removeHandler(handler)
    recorder.storage, recorder.log, recorder.logs = storage, log.getvalue(), folder / "logs"
    recorder.diverging, recorder.broken, recorder.fine = diverging, broken, fine
    return recorder


def replace_data(run):
    data = replace(run.train.data, name="cifar100")
    return run.model_copy(update={"train": replace(run.train, data=data)})


@pytest.mark.slow
def test_a_run_has_events_from_its_start_to_its_end(recorded):
    kinds = [type(event) for event in recorded.events if event.run.key == recorded.fine.key]
    (end,) = recorded.of(Finished, recorded.fine)

    assert kinds[:2] == [Started, Placed]
    assert kinds[-1] is Finished
    assert kinds.index(EpochDone) < kinds.index(Saved)
    assert [event.epoch for event in recorded.of(EpochDone, recorded.fine)] == [1, 2, 3]
    assert recorded.of(EpochDone, recorded.fine)[0].values["accuracy"] <= 1
    assert (end.status, len(end.margins)) == (Status.DONE, 4 * 100)


@pytest.mark.slow
def test_a_diverged_and_a_failed_run_end_once_and_others_continue(recorded):
    (diverged,) = recorded.of(Finished, recorded.diverging)
    (failed,) = recorded.of(Finished, recorded.broken)

    assert diverged.status is Status.DIVERGED
    assert "diverged after 0 epochs" in diverged.error
    assert failed.status is Status.FAILED
    assert "no source has cifar100" in failed.error
    assert len(recorded.of(Started, recorded.broken)) == 1
    assert "no source has cifar100" in (recorded.logs / f"{recorded.broken.key}.log").read_text()


@pytest.mark.slow
def test_checkpoints_are_in_the_storage(recorded):
    last = recorded.of(Saved, recorded.fine)[-1].checkpoint

    assert last.epoch == 3
    assert last.path.startswith(recorded.storage)


@pytest.mark.slow
def test_an_error_of_a_recorder_is_logged_and_stops_no_run(recorded):
    assert "Broken failed on EpochDone" in recorded.log


@pytest.mark.slow
def test_a_run_continues_from_the_given_checkpoint(cluster, runs, options):
    first, again = EventRecorder(), EventRecorder()
    run = runs("epochs=60")[1]
    tuner.run_jobs([tuner.Job(run, CPU)], [first], options)
    checkpoint = first.of(Saved)[0].checkpoint

    tuner.run_jobs([tuner.Job(run, CPU, (checkpoint,))], [again], options)

    assert [event.epoch for event in again.of(Placed)] == [checkpoint.epoch]
    assert [event.epoch for event in again.of(EpochDone)] == [*range(checkpoint.epoch + 1, 61)]
    assert again.of(Finished)[0].margins == first.of(Finished)[0].margins


@pytest.mark.slow
def test_after_the_loss_of_its_worker_a_run_continues_from_the_newest_valid_checkpoint(
    cluster, runs, options
):
    """
    First the worker is killed and the newest checkpoint of this invocation is damaged. Then another
    worker is killed, together with the actor that holds the checkpoints.
    """
    recorder = EventRecorder()
    run = runs("epochs=200")[1]

    def kill_twice(event):
        saved = recorder.of(Saved)
        if isinstance(event, Saved) and len(saved) == 3:
            newest = Path(saved[-1].checkpoint.path)
            (newest / "state.pt").write_bytes(b"damaged")
            kill_workers()
        if isinstance(event, Saved) and len(saved) == 5:
            (name,) = ray.util.list_named_actors()
            ray.kill(ray.get_actor(name))
            kill_workers()

    tuner.run_jobs([tuner.Job(run, CPU)], [recorder, kill_twice], options)

    saved = [event.checkpoint.epoch for event in recorder.of(Saved)]
    assert [event.epoch for event in recorder.of(Placed)] == [0, saved[1], saved[4]]
    assert recorder.of(Finished)[0].status is Status.DONE
    assert {event.epoch for event in recorder.of(EpochDone)} == set(range(1, 201))


def kill_workers():
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any("ImplicitFunc" in part for part in child.cmdline()):
                child.kill()


@pytest.mark.slow
def test_a_storage_that_fails_permanently_interrupts_the_run_at_its_end(
    cluster, runs, options, tmp_path
):
    """
    A file replaces the storage during a run, so that nothing can be saved any more.
    """
    recorder = EventRecorder()
    run = runs("epochs=50")[1]

    def break_storage(event):
        if isinstance(event, Saved) and Path(options.storage).is_dir():
            Path(options.storage).rename(tmp_path / "away")
            Path(options.storage).write_text("no folder")

    tuner.run_jobs([tuner.Job(run, CPU)], [recorder, break_storage], options)

    (end,) = recorder.of(Finished)
    assert end.status is Status.INTERRUPTED
    assert end.error.startswith("the state cannot be saved: ")
    assert len(recorder.of(Started)) == 1
    assert [event.epoch for event in recorder.of(EpochDone)] == [*range(1, 51)]


@pytest.mark.slow
def test_fail_fast_interrupts_the_other_runs(cluster, runs, options):
    diverging = runs("optimizer.learning_rate=1e30")[0]
    waiting = [run for run in runs("epochs=200") if run.id == 11]
    recorder = EventRecorder()

    jobs = [tuner.Job(run, ResourceRequest(2.0, 0.0)) for run in (diverging, *waiting)]
    tuner.run_jobs(jobs, [recorder], replace(options, fail_fast=True))

    ends = {event.run.key: event.status for event in recorder.of(Finished)}
    assert ends == {diverging.key: Status.DIVERGED, waiting[0].key: Status.INTERRUPTED}


@pytest.mark.slow
def test_runs_can_use_fractions_of_a_gpu(cluster, runs, options):
    """
    The GPUs exist in name only, so training fails. The test checks that both runs were started.
    """
    recorder = EventRecorder()
    jobs = [tuner.Job(run, ResourceRequest(0.5, 0.5)) for run in runs()]

    tuner.run_jobs(jobs, [recorder], replace(options, retries=0))

    assert len(recorder.of(Started)) == 2
    assert {event.status for event in recorder.of(Finished)} == {Status.FAILED}
    assert all("cuda" in event.error.lower() for event in recorder.of(Finished))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"),
        ("host:port", "no Ray cluster at host:port"),
        ("ray://127.0.0.1:10001", "Ray Tune does not work through ray://"),
    ],
)
def test_an_unusable_cluster_address_is_an_error(address, message):
    with (
        pytest.raises(ResourceError, match=re.escape(message)),
        machines.connect(address, Cluster(())),
    ):
        pass


def test_folders_of_killed_drivers_are_removed_but_not_those_in_use(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(machines, "TEMPORARY_LENGTH", 1000)
    with machines._temporary_folder() as mine:
        abandoned = tmp_path / "aol-ray-abandoned"
        abandoned.mkdir()
        (abandoned / machines.LOCK).touch()
        with machines._temporary_folder() as other:
            assert mine.is_dir()
            assert other.is_dir()
            assert not abandoned.exists()

    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_folder_is_one_line_before_ray_starts(tmp_path, monkeypatch):
    with small_disk(tmp_path / "full", "4k,nr_inodes=1") as full:
        monkeypatch.setattr(tempfile, "tempdir", str(full))
        monkeypatch.setattr(machines, "TEMPORARY_LENGTH", 1000)
        with (
            pytest.raises(SchedulingError, match=f"{full}: No space left on device; free some"),
            machines.connect("local", Cluster(())),
        ):
            pass


@pytest.mark.parametrize("usual", ["/" + "long" * 10, "/tmp/ü"])
def test_a_temporary_folder_that_ray_cannot_use_is_replaced(monkeypatch, usual):
    monkeypatch.setattr(tempfile, "tempdir", usual)

    with machines._temporary_folder() as folder:
        assert re.fullmatch(r"/tmp/aol-ray-\w+", str(folder))
