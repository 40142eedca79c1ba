"""
Faults of machines: on a cluster of Ray nodes on this machine, whose GPUs exist in name only.
"""

import os
import warnings
from types import SimpleNamespace

import pytest

from orchestrator.planning.resources import Cluster, ResourceRequest
from orchestrator.scheduling import tuner
from orchestrator.scheduling.cluster import connect
from orchestrator.scheduling.events import Finished, Placed, Started
from orchestrator.scheduling.placement import killed_for_memory
from orchestrator.store import Status
from tests.support import faulty
from tests.support.ray_nodes import RayNodes

KILLED = """Failure # 1 (occurred at 2026-11-30_17-00-00)
The actor died unexpectedly before finishing this task.
Failure # 2 (occurred at 2026-11-30_17-00-09)
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, \
ID: f5993284) was 22.49GB used / 23.54GB limit (0.955398)
OOM kill reason: Memory usage 24136434688B exceeded threshold of 24012684697B
"""


@pytest.fixture(scope="module")
def nodes():
    """
    Connect to two nodes with two CPUs and a GPU each, one of them sick.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about sockets
        with RayNodes(dict(os.environ)) as started:
            started.add(2, 1)
            started.add(2, 1, "sick")
            with connect(started.address, Cluster(())):
                yield started


@pytest.fixture
def train(nodes, make_run, tmp_path, data_root, monkeypatch):
    """
    Return a function that trains runs with a faulty worker; it returns the events and messages.
    """

    def train_runs(worker, request, count=1, **options):
        events, messages = [], []
        monkeypatch.setattr(tuner, "train_trial", worker)
        given = tuner.SchedulingOptions(
            storage=str(tmp_path / "ray"),
            data_root=data_root,
            log_folder=tmp_path / "logs",
            checkpoint_seconds=0.01,
            warn=messages.append,
            **options,
        )
        jobs = [tuner.Job(make_run(number), request) for number in range(count)]
        tuner.run_jobs(jobs, [events.append], given)
        return events, messages

    return train_runs


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (faulty.train_where_healthy, "CUDA fails on"),
        (faulty.train_where_memory_is_free, "out of memory on"),
    ],
)
def test_runs_leave_a_machine_whose_gpu_fails_and_it_gets_no_more_of_them(train, worker, reason):
    events, messages = train(worker, ResourceRequest(1.0, 1.0), count=20)

    assert [event.status for event in of(Finished, events)] == [Status.DONE] * 20
    (message,) = messages
    assert f"gets no more runs after 2 faults; {reason}" in message
    assert len(of(Placed, events)) == 20
    assert len(of(Started, events)) in (22, 23)  # one may have been on its way to the machine


@pytest.mark.slow
def test_a_run_without_enough_memory_is_tried_again_alone_on_a_machine(train):
    events, _ = train(faulty.train_if_alone, ResourceRequest(1.0, 0.0), count=2)

    assert [event.status for event in of(Finished, events)] == [Status.DONE] * 2
    assert len(of(Started, events)) == 4


@pytest.mark.slow
def test_a_run_without_enough_memory_alone_fails_with_the_amounts(train):
    events, _ = train(faulty.train_without_memory, ResourceRequest(1.0, 0.0))
    (end,) = of(Finished, events)

    assert end.status is Status.FAILED
    assert "20.00 GiB needed, 1.50 GiB of the GPU free; it was alone on the machine" in end.error
    assert len(of(Started, events)) == 2


def test_a_worker_that_ray_killed_for_memory_is_recognised_by_its_last_failure(tmp_path):
    file = tmp_path / "error.txt"
    file.write_text(KILLED)
    first = tmp_path / "first.txt"
    first.write_text(KILLED.partition("Failure # 2")[0])

    assert killed_for_memory(SimpleNamespace(error_file=str(file))).text == (
        "its worker was killed: the memory of machine 10.0.0.7 was exhausted, 22.49GB used / "
        "23.54GB"
    )
    assert killed_for_memory(SimpleNamespace(error_file=str(first))) is None
    assert killed_for_memory(SimpleNamespace(error_file=None)) is None
