"""
A machine without memory: Ray kills the worker that takes it.
"""

import warnings

import psutil
import pytest

from orchestrator.planning.resources import Cluster, Node, ResourceRequest
from orchestrator.scheduling import tuner
from orchestrator.scheduling.cluster import connect
from orchestrator.scheduling.events import Finished, Started
from orchestrator.store import Status
from tests.support import faulty


@pytest.mark.slow
def test_a_run_that_ray_kills_for_memory_is_tried_again_alone_and_fails_with_the_amounts(
    tmp_path, make_run, data_root, monkeypatch
):
    """
    Ray kills workers once 5 % of the memory more is in use than before.
    """
    memory, events = psutil.virtual_memory(), []
    threshold = min(0.95, 1.05 - memory.available / memory.total)
    monkeypatch.setenv("RAY_memory_usage_threshold", str(threshold))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "200")
    monkeypatch.setattr(tuner, "train_trial", faulty.train_until_killed)
    options = tuner.SchedulingOptions(str(tmp_path / "ray"), data_root, tmp_path / "logs", 1.0)
    job = tuner.Job(make_run(0), ResourceRequest(1.0, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about sockets
        with connect("local", Cluster((Node(2.0, 0.0),))):
            tuner.run_jobs([job], [events.append], options)
    (end,) = (event for event in events if isinstance(event, Finished))

    assert end.status is Status.FAILED
    assert "the memory of machine 127.0.0.1 was exhausted, " in end.error
    assert "GB used / " in end.error
    assert end.error.endswith("it was alone on the machine, so it needs one with more memory")
    assert sum(isinstance(event, Started) for event in events) <= 2
