import json
import os
import shutil
import socket
from collections import namedtuple
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aol.config import DataConfig, LossConfig, ModelConfig
from orchestrator.errors import RecordError, ResourceError
from orchestrator.planning.plan import Action, as_rows, make_plan
from orchestrator.planning.resources import (
    Cluster,
    Cost,
    Node,
    ResourceRequest,
    check_disk,
    check_requests,
    cost,
    costs,
    cpu_flop_per_s,
    local_cluster,
    local_gpus,
    request_resources,
)
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Checkpoint, Status, StoredRun

LAPTOP = Cluster((Node(4, 0),))
ONE_GPU = Cluster((Node(16, 1),))
TWO_MACHINES = Cluster((Node(4, 1), Node(8, 0)))


def stored(run, status, *, epoch=0, recorded=None, checkpoints=(), **other):
    """
    Return the run as stored, `epoch` being the last recorded one.
    """
    nothing = dict.fromkeys(StoredRun.__dataclass_fields__)
    known = {
        "key": run.key,
        "run_id": run.id,
        "name": run.name,
        "profile": run.profile,
        "seed": run.train.seed,
        "digest": run.train.digest(),
        "config": json.loads(json.dumps(asdict(run.train))),
        "epochs": run.train.epochs,
        "status": status,
        "epoch": epoch,
        "recorded": epoch if recorded is None else recorded,
        "checkpoints": tuple(Checkpoint(at, f"/c/{at}") for at in checkpoints),
    }
    return StoredRun(**(nothing | known | other))


class Watched:
    """
    A stored run that counts how often a field is read.
    """

    reads = 0

    def __init__(self, run):
        self.run = run

    def __getattr__(self, name):
        Watched.reads += 1
        return getattr(self.run, name)


def experiment_of(*runs):
    return Experiment(
        path=None,
        name="x",
        source="",
        profile="demo",
        note="",
        checkpoint_seconds=60,
        data_root=None,
        runs=runs,
        columns=(),
        tables=(),
    )


def planned(run, *known):
    """
    Return the plan of one run: action, first epoch, reason, epochs of its checkpoints.
    """
    experiment = experiment_of(run)
    (item,) = make_plan(experiment, known)
    assert item.run is run
    return item.action, item.epoch, item.reason, [one.epoch for one in item.checkpoints]


@pytest.fixture
def run(make_run):
    return make_run(7, epochs=10)


# Actions


def test_a_run_that_is_not_stored_is_new(run, make_run):
    other = stored(make_run(8), Status.DONE, epoch=3)

    assert planned(run) == (Action.NEW, 0, "not in the store", [])
    assert planned(run, other) == (Action.NEW, 0, "not in the store", [])


def test_a_queued_run_is_new(run):
    assert planned(run, stored(run, Status.PENDING)) == (Action.NEW, 0, "never started", [])


def test_a_finished_run_is_done(run):
    known = stored(run, Status.DONE, epoch=10, checkpoints=[10])

    assert planned(run, known) == (Action.DONE, 10, "trained 10 epochs", [])


def test_the_reason_of_a_run_of_one_epoch_is_singular(make_run):
    run = make_run(7, epochs=1)

    assert planned(run, stored(run, Status.DONE, epoch=1))[2] == "trained 1 epoch"


def test_a_diverged_run_is_not_trained_again(run):
    known = stored(run, Status.DIVERGED, epoch=4, checkpoints=[4])

    assert planned(run, known) == (
        Action.DIVERGED,
        4,
        "diverged after epoch 4; change its settings or --rerun 7",
        [],
    )


def test_an_unsound_run_is_not_trained_again(run):
    known = stored(run, Status.UNSOUND, epoch=10, checkpoints=[10], error="layer 1: its bound")

    assert planned(run, known) == (
        Action.UNSOUND,
        10,
        "layer 1: its bound; fix the layer, then --rerun 7",
        [],
    )


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.FAILED])
def test_an_unfinished_run_continues_from_its_newest_checkpoint(run, status):
    known = stored(run, status, epoch=6, checkpoints=[6, 4])

    assert planned(run, known) == (Action.CONTINUE, 6, f"{status} after epoch 6", [6, 4])


def test_a_run_whose_driver_vanished_counts_as_interrupted(run):
    known = stored(run, Status.RUNNING, epoch=6, checkpoints=[6])

    assert planned(run, known) == (Action.CONTINUE, 6, "interrupted after epoch 6", [6])


def test_a_run_continues_from_its_checkpoints_epoch_not_from_the_last_recorded_one(run):
    """
    Epochs 5 and 6 were recorded and their checkpoints are lost, so they are trained again.
    """
    known = stored(run, Status.INTERRUPTED, epoch=6, checkpoints=[4, 2])

    assert planned(run, known) == (Action.CONTINUE, 4, "interrupted after epoch 6", [4, 2])


def test_a_checkpoint_beyond_the_recorded_epochs_is_not_used(run):
    """
    Continuing there would leave the epochs between without metrics.
    """
    known = stored(run, Status.INTERRUPTED, epoch=4, checkpoints=[6, 4])
    beyond = stored(run, Status.INTERRUPTED, epoch=4, checkpoints=[6, 5])

    assert planned(run, known) == (Action.CONTINUE, 4, "interrupted after epoch 4", [4])
    assert planned(run, beyond)[:2] == (Action.NEW, 0)


def test_a_run_with_a_gap_continues_from_the_newest_checkpoint_before_it(run):
    known = stored(run, Status.INTERRUPTED, epoch=6, recorded=4, checkpoints=[6, 4])
    reason = "interrupted after epoch 6, but epoch 5 is not recorded"

    assert planned(run, known) == (Action.CONTINUE, 4, reason, [4])


def test_a_run_with_a_gap_before_every_checkpoint_is_trained_from_the_start(run):
    known = stored(run, Status.DONE, epoch=6, recorded=2, checkpoints=[6, 4])
    reason = "done after epoch 6, but epoch 3 is not recorded"

    assert planned(run, known) == (Action.NEW, 0, reason.replace(" after epoch 6", ""), [])


def test_a_run_interrupted_before_its_first_checkpoint_is_new(run):
    known = stored(run, Status.INTERRUPTED, epoch=2)
    early = stored(run, Status.FAILED)

    assert planned(run, known) == (Action.NEW, 0, "interrupted before its first checkpoint", [])
    assert planned(run, early) == (Action.NEW, 0, "failed", [])


def test_a_run_stopped_between_its_last_epoch_and_its_end_continues_there(run):
    known = stored(run, Status.RUNNING, epoch=10, checkpoints=[10, 8])

    assert planned(run, known)[:2] == (Action.CONTINUE, 10)


def test_changed_settings_are_trained_from_the_start_and_listed(run):
    before = run.model_copy(
        update={
            "train": replace(run.train, epochs=20, loss=LossConfig(offset=1.0, temperature=0.25))
        }
    )
    known = stored(before, Status.DONE, epoch=20)
    offset = run.train.loss.offset

    assert planned(run, known) == (
        Action.CHANGED,
        0,
        f"loss.offset 1.0 → {offset}, epochs 20 → 10",
        [],
    )


def test_another_seed_or_profile_is_new_not_changed(run):
    other_seed = run.model_copy(update={"train": replace(run.train, seed=1007)})
    other_settings = run.model_copy(
        update={"train": replace(run.train, epochs=20), "profile": "paper"}
    )

    assert planned(run, stored(other_seed, Status.DONE))[0] is Action.NEW
    assert planned(run, stored(other_settings, Status.DONE))[0] is Action.NEW


def test_changes_compares_with_the_latest_settings_of_the_run(run):
    first = run.model_copy(update={"train": replace(run.train, epochs=20)})
    second = run.model_copy(update={"train": replace(run.train, batch_size=10)})
    reason = planned(run, stored(first, Status.DONE), stored(second, Status.DONE))[2]

    assert reason == "batch_size 10 → 50"


@pytest.mark.parametrize("rerun", [[], [1]])
def test_a_stored_run_with_the_same_key_by_chance_is_an_error(make_run, rerun):
    """
    With --rerun the results of the other run would be deleted.
    """
    run = make_run(1)
    other = stored(run, Status.DONE, config=asdict(replace(run.train, batch_size=10)))
    with pytest.raises(RecordError, match=rf"run {run.key} has other settings .*batch_size 10 → "):
        make_plan(experiment_of(run), [other], rerun)


def test_done_diverged_and_unsound_runs_do_not_train(run):
    known = {status: stored(run, status, epoch=10) for status in Status}
    actions = {status: planned(run, one)[0] for status, one in known.items()}

    idle = {status for status, action in actions.items() if action not in ("new", "continue")}
    assert idle == {Status.DONE, Status.DIVERGED, Status.UNSOUND}


def test_the_plan_keeps_the_experiments_order(make_run):
    runs = tuple(make_run(number) for number in (3, 1, 2))
    experiment = experiment_of(*runs)
    done = stored(runs[2], Status.DONE, epoch=runs[2].train.epochs)
    plan = make_plan(experiment, [done])

    assert [item.run.id for item in plan] == [3, 1, 2]
    assert [item.todo for item in plan] == [True, True, False]
    rows = json.loads(json.dumps(as_rows(plan)))
    assert rows[2] == {
        "id": 2,
        "name": "AOL-Small",
        "profile": "demo",
        "dataset": "digits",
        "seed": 2,
        "action": "done",
        "from_epoch": 3,
        "epochs": 3,
        "reason": "trained 3 epochs",
        "key": runs[2].key,
        "settings": json.loads(json.dumps(asdict(runs[2].train))),
    }


# Resources


@pytest.mark.parametrize(
    ("cluster", "parallel", "wanted"),
    [
        (LAPTOP, 1, ResourceRequest(4, 0)),
        (LAPTOP, 2, ResourceRequest(2, 0)),
        (LAPTOP, 3, ResourceRequest(1, 0)),
        (LAPTOP, 14, ResourceRequest(1, 0)),
        (Cluster((Node(64, 0),)), 14, ResourceRequest(4, 0)),
        (Cluster((Node(4, 0), Node(12, 0))), 1, ResourceRequest(12, 0)),
        (ONE_GPU, 1, ResourceRequest(2, 1)),
        (ONE_GPU, 14, ResourceRequest(2, 1)),
        (Cluster((Node(8, 8),)), 14, ResourceRequest(1, 1)),
        (Cluster((Node(4, 8),)), 14, ResourceRequest(1, 1)),
        (TWO_MACHINES, 2, ResourceRequest(2, 1)),
    ],
)
def test_by_default_a_run_takes_one_gpu_or_its_share_of_the_cpus(
    make_run, cluster, parallel, wanted
):
    assert request_resources(make_run(), cluster, parallel) == wanted


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"gpus": 0}, ResourceRequest(8, 0)),
        ({"gpus": 0.5}, ResourceRequest(1, 0.5)),
        ({"gpus": 0.25}, ResourceRequest(1, 0.25)),
        ({"gpus": 1}, ResourceRequest(2, 1)),
        ({"cpus": 3}, ResourceRequest(3, 1)),
        ({"cpus": 0.5, "gpus": 0.5}, ResourceRequest(0.5, 0.5)),
    ],
)
def test_explicit_resources_are_requested(make_run, resources, expected):
    assert request_resources(make_run(**resources), ONE_GPU, parallel=2) == expected


def test_two_runs_that_share_a_gpu_fit_beside_each_other(make_run):
    wanted = request_resources(make_run(gpus=0.5), Cluster((Node(2, 1),)), parallel=2)

    assert 2 * wanted.cpus <= 2
    assert 2 * wanted.gpus <= 1


def test_a_gpu_that_no_machine_has_is_an_error(make_run):
    run = make_run(7, gpus=1)

    with pytest.raises(ResourceError) as caught:
        check_requests([(run, ResourceRequest(1, 1))], LAPTOP)
    assert str(caught.value) == (
        "run 7 needs 1 CPU and 1 GPU, but no machine of the cluster has them "
        "(1 machine, 4 CPUs, 0 GPUs); lower `resources.gpus` in SPEC or with --set"
    )


def test_equal_infeasible_requests_are_reported_in_one_line(make_run):
    runs = [make_run(7, cpus=64), make_run(8, cpus=64)]

    with pytest.raises(ResourceError) as caught:
        check_requests([(run, ResourceRequest(64, 0)) for run in runs], LAPTOP)
    assert str(caught.value) == (
        "runs 7, 8 need 64 CPUs and 0 GPUs, but no machine of the cluster has them "
        "(1 machine, 4 CPUs, 0 GPUs); lower `resources.cpus` in SPEC or with --set"
    )


def test_an_unwritable_folder_is_an_error(make_run):
    with pytest.raises(ResourceError, match="/dev/null is not a writable folder; choose another"):
        check_disk([cost(make_run())], Path("/dev/null/ray"))


def test_a_request_for_gpus_on_a_cpu_machine_reaches_the_check(make_run):
    """
    Where no machine has a GPU there is no share of CPUs per GPU to compute.
    """
    run = make_run(7, gpus=1)

    with pytest.raises(ResourceError, match="run 7 needs 1 CPU"):
        check_requests([(run, request_resources(run, LAPTOP, 1))], LAPTOP)


def test_a_request_must_fit_a_single_machine(make_run):
    runs = [make_run(number) for number in range(3)]
    wanted = [ResourceRequest(10, 0), ResourceRequest(6, 1), ResourceRequest(8, 0)]

    with pytest.raises(ResourceError) as caught:
        check_requests(zip(runs, wanted, strict=True), TWO_MACHINES)
    lines = str(caught.value).splitlines()
    assert [line.split(" needs ")[0] for line in lines] == ["run 0", "run 1"]
    assert "(2 machines, 12 CPUs, 1 GPU)" in lines[0]


def test_feasible_requests_pass(make_run):
    run = make_run()

    check_requests([(run, ResourceRequest(4, 1))], TWO_MACHINES)
    check_requests([], TWO_MACHINES)


def test_this_machine_has_the_cpus_this_process_may_use():
    cluster = local_cluster()

    assert len(cluster.nodes) == 1
    assert 1 <= cluster.cpus <= os.cpu_count()
    assert cluster.gpus == local_gpus()


# Costs


def test_the_cost_of_aol_small_is_the_papers(make_run):
    """
    18.72 million parameters, 409 GFLOP a step of 250 and 200,000 steps.
    """
    run = make_run(
        model=ModelConfig(kind="patchwise"),
        data=DataConfig(name="cifar10"),
        epochs=1000,
        batch_size=250,
    )
    found = cost(run)

    assert found.checkpoint_bytes == pytest.approx(8 * 18.72e6, rel=1e-3)
    assert found.flop >= 409e9 * 200_000
    assert found.flop <= (409 + 205) * 1.1e9 * 200_000


def test_costs_are_by_key(make_run):
    runs = [make_run(1), make_run(2, epochs=6)]

    assert costs(runs) == {run.key: cost(run) for run in runs}


def test_cost_grows_with_the_epochs(make_run):
    assert cost(make_run(epochs=6)).flop == pytest.approx(2 * cost(make_run(epochs=3)).flop)


@pytest.fixture
def disk(monkeypatch):
    """
    Return a function that sets the free bytes of the disk and returns the folders looked up.
    """
    folders = []
    usage = namedtuple("usage", "total used free")

    def free(count):
        def disk_usage(folder):
            folders.append(folder)
            return usage(10**12, 0, count)

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        return folders

    return free


def test_two_checkpoints_of_every_run_must_fit_the_disk(disk, tmp_path):
    disk(10_000)

    check_disk([Cost(1, 2_000), Cost(1, 3_000)], tmp_path)
    with pytest.raises(ResourceError):
        check_disk([Cost(1, 2_000), Cost(1, 3_001)], tmp_path)


def test_a_full_disk_is_an_error_with_both_sizes(disk, tmp_path):
    disk(1_500_000_000)

    with pytest.raises(ResourceError) as caught:
        check_disk([Cost(1, 10**9)], tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: the checkpoints need 2.0 GB and only 1.5 GB are free; "
        "free some space or choose another place with --storage"
    )


def test_a_missing_folder_is_on_the_disk_of_its_parent(disk, tmp_path):
    folders = disk(10)
    check_disk([], tmp_path / "not" / "yet")

    assert folders == [tmp_path]


def test_cpu_flop_per_s_is_between_a_calculator_and_a_supercomputer():
    assert 1e8 < cpu_flop_per_s() < 1e15


def test_cluster_counts_its_machines():
    assert str(LAPTOP) == "1 machine, 4 CPUs, 0 GPUs"
    assert str(TWO_MACHINES) == "2 machines, 12 CPUs, 1 GPU"
    assert (TWO_MACHINES.cpus, TWO_MACHINES.gpus) == (12, 1)


def test_a_done_run_with_a_missing_epoch_is_trained_again(run):
    known = stored(run, Status.DONE, epoch=10, recorded=9, checkpoints=(10,))

    action, epoch, reason, _ = planned(run, known)

    assert (action, epoch) == (Action.NEW, 0)
    assert reason == "done, but epoch 10 is not recorded"


def test_a_run_of_a_running_driver_is_not_trained(run):
    known = stored(
        run,
        Status.RUNNING,
        epoch=4,
        driver=f"{socket.gethostname()}:{os.getpid()}",
        alive=True,
    )

    action, epoch, reason, _ = planned(run, known)

    assert (action, epoch) == (Action.RUNNING, 4)
    assert reason == f"driver {socket.gethostname()}:{os.getpid()}"


def test_a_rerun_starts_from_the_start_whatever_is_stored(make_run):
    runs = (make_run(1), make_run(2))
    experiment = experiment_of(*runs)
    done = [stored(run, Status.DONE, epoch=run.train.epochs) for run in runs]

    plan = make_plan(experiment, done, rerun=[2])

    assert [(item.action, item.reason) for item in plan][1] == (
        Action.NEW,
        "requested with --rerun",
    )
    assert plan[0].action is Action.DONE


@pytest.mark.parametrize("change", [{}, {"batch_size": 10}], ids=["same", "changed"])
def test_twice_as_many_runs_are_twice_the_work(make_run, change):
    reads = []
    for count in (20, 40):
        Watched.reads = 0
        earlier = [Watched(stored(make_run(number), Status.DONE)) for number in range(count)]
        now = experiment_of(*(make_run(number, **change) for number in range(count)))
        planned = make_plan(now, earlier)
        reads.append(Watched.reads)

    assert len({item.action for item in planned}) == 1
    assert reads[1] == 2 * reads[0]
