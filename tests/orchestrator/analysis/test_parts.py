from dataclasses import replace

import pytest

from orchestrator.analysis.parts import describe_commits, trained_parts
from orchestrator.store import Attempt

FIRST = Attempt(0, "d:1", "t", host="a", device="CPU", git_commit="abc", packages={"torch": "2.0"})


def later(epoch, **origin):
    return replace(FIRST, from_epoch=epoch, **origin)


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([], []),
        ([FIRST], [(1, 0, 9)]),
        ([FIRST, later(4), later(6, host="b")], [(1, 0, 9)]),
        ([FIRST, later(4, git_commit="def")], [(1, 0, 4), (2, 4, 9)]),
        ([FIRST, later(4, git_diff="a patch")], [(1, 0, 4), (2, 4, 9)]),
        ([FIRST, later(4, device="H200")], [(1, 0, 4), (2, 4, 9)]),
        ([FIRST, later(4, packages={"torch": "2.1"})], [(1, 0, 4), (2, 4, 9)]),
        ([FIRST, later(6, git_commit="def"), later(4)], [(1, 0, 9)]),
        ([FIRST, later(6, device="A"), later(4, device="B")], [(1, 0, 4), (3, 4, 9)]),
        ([FIRST, later(0, device="B")], [(2, 0, 9)]),
        ([FIRST, later(9, device="B")], [(1, 0, 9)]),
    ],
)
def test_epochs_are_divided_by_the_origin_of_the_attempt_that_trained_them(attempts, expected):
    parts = trained_parts(attempts, 9)

    assert [(part.number, part.before, part.last) for part in parts] == expected


def test_a_run_without_an_epoch_has_its_last_attempt():
    (part,) = trained_parts([FIRST, later(0, git_commit="def")], 0)

    assert (part.attempt.git_commit, part.epochs) == ("def", "no epoch")


def test_several_commits_are_described_with_their_epochs():
    other = later(4, git_commit="def")

    assert describe_commits([FIRST, later(2, device="H200")], 9) == "abc"
    assert describe_commits([FIRST, other], 5) == "abc (epochs 1 to 4), def (epoch 5)"
    assert describe_commits([FIRST, replace(other, git_commit=None)], 5).endswith(
        "unknown (epoch 5)"
    )
    assert describe_commits([], 0) is None
