"""
Claims judged over stored runs: each relation, what is undecided and why, and the error rates.
"""

from dataclasses import replace

import numpy as np
import pytest

from orchestrator.analysis.claims import (
    ClaimVerdict,
    JudgedClaim,
    claim_record,
    describe_evidence,
    judge_claims,
)
from orchestrator.analysis.claims.contrasts import SeedContrasts
from orchestrator.analysis.claims.judge import _judge_all
from orchestrator.analysis.claims.measurements import Basis
from orchestrator.analysis.claims.relations import claim_test
from orchestrator.analysis.report import make_report
from orchestrator.analysis.verdicts import SIGNIFICANCE_LEVEL, holm
from orchestrator.spec.claims import Claim
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status
from tests.support.reports import certificate, damage_margins, finish, replicate_of
from tests.support.shell import PROJECT
from tests.support.stores import ORIGIN

HOLDS, CONTRADICTED, UNDECIDED, NOT_MEASURED = ClaimVerdict
RUNS = (20, 21, 22, 23, 24)
COLUMNS = ("Std Acc", "CRA 36/255", "CRA 1")
LABELS = {run: f"run {run}" for run in RUNS}


def claim(kind, **relation):
    return Claim.model_validate({"id": "C", "text": "so it is", kind: relation})


FALLS = claim("decreases", runs="20-24", column="Std Acc")
RISES = claim("increases", runs="20-24", column="Std Acc")
SHRINKS = claim("decreases", runs="20-24", column="Std Acc", minus="CRA 36/255")
HIGHEST = claim("highest", run=20, runs="20-24", column="Std Acc")
LOWEST = claim("lowest", run=24, runs="20-24", column="Std Acc")
ABOVE = claim("above", orders=[[20, 21], [22, 23]], columns=["Std Acc", "CRA 36/255"])
MOVES = claim("moves", runs="20-24", best={"Std Acc": 20, "CRA 36/255": "21-22", "CRA 1": 23})
ALL = [FALLS, RISES, SHRINKS, HIGHEST, LOWEST, ABOVE, MOVES]


class Table:
    """
    Values by column, run and seed, to be compared by their seeds.
    """

    tests_trends, titles = True, COLUMNS

    def __init__(self, values):
        self.values = values

    def contrasts(self, groups, column, minus=None):
        less = self.values[minus] if minus else 0.0
        rows = dict(zip(RUNS, self.values[column] - less, strict=True))
        return [
            SeedContrasts({run: list(rows[run]) for run in group}, paired=True, least=1e-9)
            for group in groups
        ]


def judged(asked, table):
    """
    The verdict of one claim alone, which Holm's correction leaves as it is.
    """
    tests = claim_test(asked, table, LABELS)
    _, p_holds, p_opposite = tests.evaluate(tests.contrasts)
    if 2 * min(p_holds, p_opposite) >= SIGNIFICANCE_LEVEL:
        return UNDECIDED
    return HOLDS if p_holds < p_opposite else CONTRADICTED


PAPER = {
    "Std Acc": [80.3, 77.8, 70.6, 59.9, 48.5],
    "CRA 36/255": [46.4, 63.0, 62.8, 55.0, 45.4],
    "CRA 1": [0.0, 2.2, 22.5, 31.1, 29.0],
}


def around(means, *, seeds=3, sd=0.3, generator=None):
    generator = generator or np.random.default_rng(1)
    return Table(
        {
            column: np.array(row)[:, None] + sd * generator.normal(size=(5, seeds))
            for column, row in means.items()
        }
    )


@pytest.mark.parametrize(
    ("asked", "verdict"),
    [
        (FALLS, HOLDS),
        (RISES, CONTRADICTED),
        (SHRINKS, HOLDS),
        (HIGHEST, HOLDS),
        (LOWEST, HOLDS),
        (ABOVE, CONTRADICTED),  # 46.4 is not above 63.0
        (MOVES, HOLDS),
        (claim("above", orders=[[20, 21, 22]], columns=["Std Acc"]), HOLDS),
        (claim("highest", run=24, runs="20-24", column="CRA 1"), CONTRADICTED),
        (claim("moves", runs="20-24", best={"Std Acc": 21, "CRA 1": 23}), CONTRADICTED),
        (claim("moves", runs="20-22", best={"CRA 36/255": 21}), UNDECIDED),
    ],
)
def test_the_papers_numbers_with_noise_decide_as_they_should(asked, verdict):
    assert judged(asked, around(PAPER)) is verdict


def test_a_trend_with_a_step_in_the_wrong_order_does_not_hold():
    means = PAPER | {"Std Acc": [80.0, 80.1, 70.0, 60.0, 50.0]}

    assert judged(FALLS, around(means, sd=0.5, seeds=8)) is not HOLDS


DRAWS = 400
ALLOWED = SIGNIFICANCE_LEVEL + 3 * np.sqrt(0.05 * 0.95 / DRAWS)  # with the noise of the draws


def share_decided(asked, means, seeds):
    """
    Return the share of simulated experiments in which a claim is decided, in either direction.
    """
    generator = np.random.default_rng(seeds)
    tables = (around(means, seeds=seeds, generator=generator) for _ in range(DRAWS))
    return sum(judged(asked, table) is not UNDECIDED for table in tables) / DRAWS


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("asked", ALL, ids=lambda asked: asked.kind)
def test_where_all_runs_are_equal_few_claims_are_decided(asked, seeds):
    """
    In either direction together, in 5 % of experiments at most.
    """
    equal = {column: [50.0] * 5 for column in COLUMNS}

    assert share_decided(asked, equal, seeds) <= ALLOWED


def test_over_all_claims_holms_correction_keeps_the_rate_of_a_wrong_decision():
    """
    Ten claims about ten independent pairs of equal runs.
    """
    generator = np.random.default_rng(0)
    one = claim("above", orders=[[20, 21]], columns=["Std Acc"])
    draws, wrong = 400, 0
    for _ in range(draws):
        p_values = {}
        for number in range(10):
            tests = claim_test(one, around({"Std Acc": [50.0] * 5}, generator=generator), LABELS)
            _, p_holds, p_opposite = tests.evaluate(tests.contrasts)
            p_values[number] = min(1.0, 2 * min(p_holds, p_opposite))
        wrong += min(holm(p_values).values()) < SIGNIFICANCE_LEVEL

    assert wrong / draws <= SIGNIFICANCE_LEVEL + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_adding_seeds_until_a_claim_is_decided_inflates_the_error():
    """
    As docs/claims.md states: from 3 seeds to 12, looking after each one, about three times.
    """
    generator = np.random.default_rng(7)
    one = claim("above", orders=[[20, 21]], columns=["Std Acc"])
    draws, wrong = 600, 0
    for _ in range(draws):
        values = around({"Std Acc": [50.0] * 5}, seeds=12, generator=generator).values["Std Acc"]
        wrong += any(
            judged(one, Table({"Std Acc": values[:, :seeds]})) is not UNDECIDED
            for seeds in range(3, 13)
        )

    assert 0.10 < wrong / draws < 0.22


def test_the_further_seeds_decide_the_claim_and_one_fewer_do_not():
    """
    Judged again with so many seeds of the same mean and the same spread.
    """
    one = claim("above", orders=[[20, 21]], columns=["Std Acc"])

    def judge(seeds):
        row = np.resize([1.0, -1.0], seeds)
        row *= np.sqrt((seeds - 1) / (row - row.mean()).var() / seeds) * 0.5
        values = np.zeros((5, seeds))
        values[0] = 0.3 + row - row.mean()
        assessed = claim_test(one, Table({"Std Acc": values}), LABELS).assessment(Basis.SEEDS)
        (found,) = _judge_all([JudgedClaim(one, NOT_MEASURED, assessed)])
        return found

    first = judge(4)
    assert first.verdict is UNDECIDED
    assert first.further_seeds > 1
    assert judge(4 + first.further_seeds).verdict is HOLDS
    assert judge(4 + first.further_seeds - 1).verdict is UNDECIDED


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_claim_of_which_one_step_is_not_true_rarely_holds(seeds):
    """
    The hardest case of an intersection-union test: all steps but one are certain.
    """
    means = {"Std Acc": [50.0, 50.0, 40.0, 30.0, 20.0], "CRA 36/255": [50.0, 40.0, 30.0, 20.0, 9.0]}
    one = claim("above", orders=[[20, 21], [22, 23]], columns=["Std Acc", "CRA 36/255"])

    assert share_decided(one, means, seeds) <= ALLOWED


def test_a_trend_with_one_step_of_zero_holds_half_the_time():
    """
    As docs/claims.md states: Page's test is about the trend as a whole.
    """
    generator = np.random.default_rng(8)
    means = {"Std Acc": [50.0, 40.0, 30.0, 20.0, 20.0]}
    draws = 300
    holds = sum(judged(FALLS, around(means, generator=generator)) is HOLDS for _ in range(draws))

    assert 0.4 < holds / draws < 0.6


@pytest.fixture
def file():
    """
    Return the paper's runs with its claims about them.
    """
    return SpecFile(PROJECT / "experiments.yaml")


def test_the_papers_own_numbers_are_checked_against_its_claims(file, store):
    published = {
        one.claim.id: one.published for one in judge_claims(file.experiment("paper"), store)
    }
    spread = "by more than its own spread between replicates"

    for certain in ("C1", "C2", "C3", "C4", "C7"):
        assert published[certain] == f"holds in the paper, {spread}"
    assert published["C5"] == f"holds in the paper; {spread} in 9 of 10 steps"
    assert published["C6"].startswith("not decided by the paper itself: ")
    assert published["C9"] == ""


def test_a_claim_of_untrained_runs_names_them(file, store):
    experiment = file.experiment("paper")
    first = judge_claims(experiment, store)[0]

    assert first.verdict is NOT_MEASURED
    assert first.unmeasured == RUNS
    assert first.assessment is None
    assert judge_claims(replace(experiment, claims=()), store) == []


BOUND = claim("at_most", runs="all", column="layer norm", value=1)


@pytest.fixture
def asked(reported):
    """
    Return a function that returns the experiment of runs 0 and 22 with these claims.
    """
    return lambda *claims: replace(reported, claims=claims)


def unsound(store, run):
    """
    Finish a run with a layer whose norm is 1.01.
    """
    finish(store, run, 0.0)
    record = certificate(run)
    record["layers"][0]["upper"] = 1.01
    store.finish(run.key, Status.UNSOUND, error="a layer stretches", certificate=record)


def only_verdict(experiment, store):
    (found,) = judge_claims(experiment, store)
    return found


def test_an_unsound_network_contradicts_a_bound_of_its_norm(asked, store):
    experiment = asked(BOUND)
    finish(store, experiment.runs[0], 0.0)
    unsound(store, experiment.runs[1])

    assert only_verdict(experiment, store).verdict is CONTRADICTED


def test_one_run_beyond_a_bound_contradicts_it_before_the_others_are_trained(asked, store):
    experiment = asked(BOUND)
    before = only_verdict(experiment, store)
    finish(store, experiment.runs[0], 0.0)
    within = only_verdict(experiment, store)
    unsound(store, replicate_of(experiment.runs[0], 1))

    assert before.verdict is within.verdict is NOT_MEASURED
    assert within.unmeasured == (22,)
    assert only_verdict(experiment, store).verdict is CONTRADICTED


def test_a_norm_within_the_tolerance_of_the_certificate_is_no_contradiction(asked, store):
    experiment = asked(BOUND)
    for run in experiment.runs:
        finish(store, run, 0.0)
        record = certificate(run)
        record["layers"][0]["upper"] = 1 + 1e-7
        store.finish(run.key, Status.DONE, margins=store.margins(run.key), certificate=record)

    assert only_verdict(experiment, store).verdict is HOLDS


ABOVE_22 = claim("above", orders=[[22, 0]], columns=["accuracy"])


@pytest.fixture(params=[1, 3])
def supported(asked, store, request):
    """
    Return an experiment with a claim that holds, with one seed per run or with three.
    """
    experiment = asked(ABOVE_22)
    for number in range(request.param):
        finish(store, replicate_of(experiment.runs[0], number), 0.01 * number)
        finish(store, replicate_of(experiment.runs[1], number), 1.0 + 0.02 * number)
    assert only_verdict(experiment, store).verdict is HOLDS
    return experiment


def lose(store, run, status):
    store.queue([run])
    store.start(run, ORIGIN)
    store.finish(run.key, status, error="it is lost")


@pytest.mark.parametrize(
    ("status", "reason"), [(Status.DIVERGED, "diverged"), (Status.UNSOUND, "is unsound")]
)
def test_a_claim_does_not_hold_while_a_seed_of_its_runs_is_left_out(
    supported, store, status, reason
):
    lose(store, replicate_of(supported.runs[1], 7), status)
    found = only_verdict(supported, store)
    seed = supported.runs[1].replicate_seed(7)

    assert found.verdict is UNDECIDED
    assert f" Left out: run 22 with seed {seed} {reason}. A claim holds" in describe_evidence(found)
    assert claim_record(found)["excluded"] == f"run 22 with seed {seed} {reason}"
    assert found.further_seeds is None


def test_a_bound_does_not_hold_while_a_seed_is_left_out(asked, store):
    experiment = asked(BOUND)
    for run in experiment.runs:
        finish(store, run, 0.0)
    lose(store, replicate_of(experiment.runs[0], 1), Status.DIVERGED)
    found = only_verdict(experiment, store)

    assert found.verdict is UNDECIDED
    assert "Left out: run 0 with seed 1000 diverged." in describe_evidence(found)


def test_a_seed_that_is_left_out_does_not_save_a_contradicted_claim(supported, store):
    opposite = replace(supported, claims=(claim("above", orders=[[0, 22]], columns=["accuracy"]),))
    lose(store, replicate_of(supported.runs[1], 7), Status.DIVERGED)

    assert only_verdict(opposite, store).verdict is CONTRADICTED


def test_a_run_whose_only_seed_diverged_needs_no_further_one(asked, store):
    experiment = asked(ABOVE_22)
    finish(store, experiment.runs[0], 0.0)
    lose(store, experiment.runs[1], Status.DIVERGED)
    found = only_verdict(experiment, store)

    assert found.verdict is NOT_MEASURED
    assert describe_evidence(found).startswith("No value yet of run 22. Left out: run 22 with seed")
    assert found.seeds_to_train == 0


def test_damaged_margins_leave_their_claim_unmeasured_and_others_judged(asked, store):
    higher = claim("above", orders=[[22, 0]], columns=["accuracy"])
    experiment = asked(higher, BOUND)
    for run in experiment.runs:
        finish(store, run, 0.0)
    damage_margins(store, 399)
    first, second = judge_claims(experiment, store)

    assert first.verdict is NOT_MEASURED
    assert "its margins in the store are damaged" in describe_evidence(first)
    assert second.verdict is HOLDS


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_report_reads_the_margins_of_each_run_once(asked, store, monkeypatch, seeds):
    """
    For the invariants and the claims: with one seed these compare images, with more the shares.
    """
    at_other_radii = claim("above", orders=[[22, 0]], columns=["CRA 1/4", "CRA 1/2"])
    experiment = asked(claim("above", orders=[[22, 0]], columns=["accuracy"]), at_other_radii)
    for number, run in enumerate(experiment.replicates(range(seeds)).runs):
        finish(store, run, 0.1 * number)
    read, margins = [], store.margins
    monkeypatch.setattr(store, "margins", lambda key: read.append(key) or margins(key))
    report = make_report(experiment, store)

    assert sorted(read) == sorted(run.key for run in store.runs())
    assert all(judged.assessment for judged in report.claims)
    assert report.violations == ()


def test_margins_that_changed_after_the_report_change_the_next(asked, store):
    """
    Nothing is kept longer than one report.
    """
    experiment = asked(claim("above", orders=[[22, 0]], columns=["CRA 1/4"]))
    for run, shift in zip(experiment.runs, (0.0, 1.0), strict=True):
        finish(store, run, shift)
    first = only_verdict(experiment, store)
    for run, shift in zip(experiment.runs, (1.0, 0.0), strict=True):
        finish(store, run, shift)

    assert (first.verdict, only_verdict(experiment, store).verdict) == (HOLDS, CONTRADICTED)


def test_runs_on_other_images_are_not_compared_image_by_image(asked, store):
    experiment = asked(claim("above", orders=[[22, 0]], columns=["accuracy"]))
    first, second = experiment.runs
    data = replace(second.train.data, name="digit-pairs")
    other = second.model_copy(update={"train": replace(second.train, data=data)})
    experiment = replace(experiment, runs=(first, other))
    for run in experiment.runs:
        finish(store, run, 0.0)
    found = only_verdict(experiment, store)

    assert found.verdict is NOT_MEASURED
    assert "different test images, so they need a second seed" in describe_evidence(found)
    assert found.seeds_to_train == 1


def test_a_measurement_of_one_seed_needs_a_second(asked, store):
    experiment = asked(claim("above", orders=[[22, 0]], columns=["layer norm"]))
    for run in experiment.runs:
        finish(store, run, 0.0)
    found = only_verdict(experiment, store)

    assert describe_evidence(found) == "It has no value per test image, so it needs a second seed."
    assert found.seeds_to_train == 1


def test_the_number_of_seeds_is_that_of_the_compared_ones(asked, store):
    """
    Of four seeds, each run lacks another one: two are common.
    """
    experiment = asked(claim("above", orders=[[22, 0]], columns=["accuracy"]))
    first, second = experiment.runs
    second = second.model_copy(update={"train": replace(second.train, seed=first.train.seed)})
    experiment = replace(experiment, runs=(first, second))
    for number in (0, 1, 3):
        finish(store, replicate_of(first, number), 0.01 * number)
    for number in (0, 2, 3):
        finish(store, replicate_of(second, number), 0.01 * number)

    assert only_verdict(experiment, store).assessment.seeds == 2


@pytest.mark.parametrize(
    ("higher", "expected"),
    [
        (10.1, "not decided by the paper itself: by more than its own spread between replicates"),
        (15.0, "holds in the paper, by more than its own spread between replicates"),
        (5.0, "contradicted by the paper's own numbers"),
    ],
)
def test_published_values_within_the_spread_decide_nothing(asked, store, higher, expected):
    experiment = asked(claim("above", orders=[[22, 0]], columns=["accuracy"]))
    table = experiment.tables[0]
    rows = [
        row.model_copy(update={"published": [value, *row.published[1:]]})
        for row, value in zip(table.rows, (10.0, higher), strict=True)
    ]
    table = table.model_copy(update={"rows": rows})

    found = only_verdict(replace(experiment, tables=(table,)), store)
    assert found.published.startswith(expected)
