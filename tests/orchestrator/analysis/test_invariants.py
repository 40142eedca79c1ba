import numpy as np
import pytest

from orchestrator.analysis.invariants import find_violations
from orchestrator.analysis.margins import certified_share
from orchestrator.spec.fields import RADII
from orchestrator.store import Status
from tests.support.reports import certificate, damage_margins
from tests.support.stores import ORIGIN

MARGINS = np.linspace(-0.5, 3, 100, dtype="<f4")
GOOD = {name: certified_share(MARGINS, radius) for name, radius in RADII.items()}


def violations(reported, store, *, values=None, margins=MARGINS, record=certificate):
    """
    Return the violations of a finished run with these results and the certificate of `record`.
    """
    run, _ = reported.runs
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, run.train.epochs, GOOD | (values or {}))
    stored = None if margins is None else margins.tobytes()
    store.finish(run.key, Status.DONE, margins=stored, certificate=record(run))
    return find_violations(reported, store)


def test_a_consistent_run_has_no_violations(reported, store):
    assert violations(reported, store) == []


def test_unfinished_runs_are_not_checked(reported, store):
    run, _ = reported.runs
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, 1, {"accuracy": 0.1, "cra_36": 0.2})

    assert find_violations(reported, store) == []


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"values": {"cra_72": 0.9}},
            ["cra_72 0.9000 is above cra_36 0.8000", "cra_72 0.9000 is not what the margins give"],
        ),
        ({"values": {"accuracy": 0.84}}, ["accuracy 0.8400 is not what the margins give"]),
        ({"margins": None}, ["there are no margins"]),
        ({"margins": MARGINS[:99]}, ["there are 99 margins for 100 test images"]),
        ({"margins": np.full(100, np.nan, "<f4")}, ["a margin is not finite"]),
        ({"record": lambda run: None}, ["there is no certificate of its Lipschitz bound"]),
    ],
)
def test_each_violation_is_reported_in_one_line(reported, store, changes, found):
    assert violations(reported, store, **changes) == [f"run 0, seed 0: {line}" for line in found]


def attacked(robust, images):
    attack = {"radius": 36 / 255, "steps": 9, "images": images, "accuracy": 0.5, "robust": robust}
    return lambda run: certificate(run) | {"attack": attack}


@pytest.mark.parametrize("robust", [0.6, 0.65, 0.70])
def test_an_attack_between_the_certified_and_the_clean_accuracy_is_no_violation(
    reported, store, robust
):
    assert violations(reported, store, record=attacked(robust, 50)) == []


@pytest.mark.parametrize("robust", [0.58, 0.72])
def test_an_attack_beyond_the_certified_or_the_clean_accuracy_is_a_violation(
    reported, store, robust
):
    (found,) = violations(reported, store, record=attacked(robust, 50))

    assert found == (
        f"run 0, seed 0: under attack {robust:.4f} of the images are right, but 0.6000 are "
        "certified and 0.7000 right without an attack"
    )


def test_a_damaged_record_of_an_attack_is_a_violation(reported, store):
    (found,) = violations(reported, store, record=lambda run: certificate(run) | {"attack": {}})

    assert found.startswith("run 0, seed 0: the record of its attack is damaged: ")


@pytest.mark.parametrize("images", [0, -1, 101])
def test_an_attack_on_images_that_are_not_there_is_a_violation(reported, store, images):
    (found,) = violations(reported, store, record=attacked(0.6, images))

    assert found == f"run 0, seed 0: an attack on {images} of 100 test images is recorded"


@pytest.mark.parametrize("length", [399, 0])
def test_truncated_margins_are_a_violation(reported, store, length):
    violations(reported, store)
    damage_margins(store, length)

    assert find_violations(reported, store) == ["run 0, seed 0: its margins are damaged"]


def test_missing_metrics_are_a_single_violation(reported, store):
    run, _ = reported.runs
    store.queue([run])
    store.start(run, ORIGIN)
    store.record(run.key, run.train.epochs, {"accuracy": GOOD["accuracy"]})
    store.finish(run.key, Status.DONE, margins=MARGINS.tobytes(), certificate=certificate(run))

    lacking = "cra_36, cra_72, cra_108, cra_1"
    assert find_violations(reported, store) == [f"run 0, seed 0: the last epoch lacks {lacking}"]


def five_times(certificate):
    certificate["layers"][3]["upper"] *= 5


def faster(certificate):
    certificate["ratio"] = 1.5


def without_a_layer(certificate):
    certificate["layers"] = certificate["layers"][1:]


def tolerant(certificate):
    five_times(certificate)
    certificate["tolerance"] = 10.0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (five_times, "layer 3: its bound is 5, above 1.000001"),
        (tolerant, "layer 3: its bound is 5, above 1.000001"),
        (faster, "the network stretches a difference by 1.5, its bound is 1"),
        (without_a_layer, "27 layers are recorded, the network has 28"),
        (dict.clear, "its record is not a certificate: KeyError('layers')"),
    ],
)
def test_certificates_are_judged_by_their_measurements_not_by_their_stored_verdict(
    reported, store, change, found
):
    def record(run):
        forged = certificate(run)
        change(forged)
        return forged

    assert violations(reported, store, record=record) == [
        f"run 0, seed 0: Lipschitz certificate: {found}"
    ]
