"""
The verdict of a claim about costs, by the file of a benchmark.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.analysis.claims import describe_evidence, judge_claims
from orchestrator.analysis.verdicts import SIGNIFICANCE_LEVEL
from orchestrator.spec.claims import Claim

CLAIM = Claim.model_validate(
    {
        "id": "C10",
        "text": "AOL costs less.",
        "cheaper": {"method": "AOL", "than": ["SOC", "SLL"], "costs": "benchmarks/costs.json"},
    }
)
GOOD = {"step_ms": [10.0, 11.0, 10.5, 10.2], "peak_mb": [100.0, 100.5, 100.2]}
DEAR = {"step_ms": [20.0, 23.0, 20.0, 21.0], "peak_mb": [120.0, 121.0, 119.0]}
EQUAL = {"step_ms": [10.1, 10.9, 10.6, 10.1], "peak_mb": [100.4, 100.1, 100.3]}


@pytest.fixture
def judged(reported, store, tmp_path):
    """
    Return the verdict of the claim with this content of the file, None for no file.
    """

    def judge(content):
        file = tmp_path / "benchmarks" / "costs.json"
        file.parent.mkdir(exist_ok=True)
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            file.write_text(text, encoding="utf-8")
        asked = replace(reported, claims=(CLAIM,), path=tmp_path / "experiments.yaml")
        (found,) = judge_claims(asked, store)
        return found

    return judge


def record(aol, soc, sll):
    methods = {"AOL": aol, "SOC": soc, "SLL": sll}
    return {"schema": "aol-costs/1", "setting": "on a desk", "methods": methods}


@pytest.mark.parametrize(
    ("costs", "verdict"),
    [
        ((GOOD, DEAR, DEAR), "holds"),
        ((DEAR, GOOD, GOOD), "contradicted"),
        ((GOOD, DEAR, EQUAL), "undecided"),
        ((GOOD, DEAR, GOOD), "undecided"),
        ((GOOD, GOOD | {"peak_mb": DEAR["peak_mb"]}, DEAR), "undecided"),
    ],
)
def test_a_method_is_cheaper_if_it_saves_time_and_memory_beside_each_other(judged, costs, verdict):
    assert str(judged(record(*costs)).verdict) == verdict


def test_a_step_is_the_percentage_saved(judged):
    found = judged(record(GOOD, DEAR, DEAR))
    step = found.assessment.steps[0]
    ratios = np.divide(GOOD["step_ms"], DEAR["step_ms"])

    assert step.name == "AOL under SOC, time of a step"
    assert step.difference == pytest.approx(100 * (1 - np.exp(np.log(ratios).mean())))
    assert step.interval[0] < step.difference < step.interval[1]
    assert "4 rounds of a benchmark (on a desk)" in describe_evidence(found)


def test_equal_methods_are_rarely_decided(judged):
    generator = np.random.default_rng(5)
    draws, decided = 200, 0
    for _ in range(draws):
        costs = [
            {
                "step_ms": list(np.exp(generator.normal(0, 0.1, 8))),
                "peak_mb": list(np.exp(generator.normal(0, 0.01, 3))),
            }
            for _ in range(3)
        ]
        decided += str(judged(record(*costs)).verdict) != "undecided"

    assert decided / draws <= SIGNIFICANCE_LEVEL


def test_without_the_file_the_claim_is_not_measured(judged):
    found = judged(None)

    assert str(found.verdict) == "not measured"
    assert describe_evidence(found) == "There is no file benchmarks/costs.json of the benchmark."


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "Invalid JSON"),
        ("x" * 2**21, "is larger than 1048576 bytes"),
        (record(GOOD, DEAR, DEAR) | {"schema": "other"}, "schema: Input should be 'aol-costs/1'"),
        (record(GOOD, DEAR, {"step_ms": [1.0, 0.0], "peak_mb": [1.0, 1.0]}), "methods.SLL.step_ms"),
        ({"schema": "aol-costs/1", "setting": "", "methods": {"AOL": GOOD}}, "has no method 'SOC'"),
        (record(GOOD, DEAR | {"step_ms": [20.0, 21.0]}, DEAR), "different numbers of values"),
    ],
)
def test_a_damaged_file_is_named_and_the_claim_is_not_measured(judged, content, problem):
    found = judged(content)

    assert str(found.verdict) == "not measured"
    assert "costs.json: " in describe_evidence(found)
    assert problem in describe_evidence(found)
    assert "\n" not in describe_evidence(found)
