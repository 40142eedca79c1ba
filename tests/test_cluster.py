"""
A cluster that is there already: two more machines in name, joined by their address.
"""

import pytest

from orchestrator import environment
from tests.cli import TINY, Shell, epochs_of, statuses_of, stop, wait_for

environment.prepare()
environment.prepare_ray("local")


@pytest.fixture
def machines():
    """
    A head and another machine, with two CPUs each; torn down whatever happens.
    """
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_runs_survive_the_loss_of_a_machine(tmp_path, data_root, machines):
    """
    Images and storage are looked at on every machine first; the second run is large enough for
    the other machine only, and ends on the machine that replaces it.
    """
    yaml = TINY.replace("epochs: 3", "epochs: 40").replace(
        "seed: 11,", "seed: 11, resources: {cpus: 2},"
    )
    shell = Shell(tmp_path, data_root, yaml)
    lost = machines.add_node(num_cpus=2)
    arguments = ("run", "experiments.yaml", "--profile", "demo", "--address", machines.address)
    driver = shell.start(*arguments)
    try:
        seen = wait_for(driver, r"run 11 .*: epoch \d+/40")
        machines.remove_node(lost, allow_graceful=False)
        machines.add_node(num_cpus=2)
        _, err = driver.communicate(timeout=180)
    finally:
        stop(driver)

    assert "Starting Ray (2 machines, 3 CPUs, 0 GPUs)" in seen
    assert "its worker was lost, another takes over" in seen + err
    assert driver.returncode == 0, err
    assert statuses_of(tmp_path) == {0: "done", 11: "done"}
    assert all(sorted(epochs) == list(range(1, 41)) for epochs in epochs_of(tmp_path).values())
    assert not list((tmp_path / "results" / "ray").glob(".seen-*"))
