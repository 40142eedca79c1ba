import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.experiment import parse_ids_option
from orchestrator.spec.fields import parse_ids

NO_RANGE = "no number or range; write for example 0,20-24"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0", (0,)),
        ("0,20-24", (0, 20, 21, 22, 23, 24)),
        ("0..4", (0, 1, 2, 3, 4)),
        (" 3 , 1,3, 0-1 ", (3, 1, 0)),
        ("7-7", (7,)),
        (7, (7,)),
        ([1, "3-4"], (1, 3, 4)),
    ],
)
def test_ids_are_numbers_and_ranges_each_once_in_order(text, ids):
    assert parse_ids(text) == ids


@pytest.mark.parametrize("text", ["", "a", "-1", "1-", "1.5", "1,,2", "1-2-3", True, None])
def test_an_invalid_id_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="is no number or range; write for example 0,20-24"):
        parse_ids(text)


@pytest.mark.parametrize("text", ["5-3", "1,9..8"])
def test_an_empty_range_is_refused(text):
    with pytest.raises(ValueError, match=r"the range (5-3|9-8) is empty"):
        parse_ids(text)


def test_selection_keeps_the_files_order(spec_file):
    experiment = spec_file().experiment("quick")

    assert [run.id for run in experiment.select([1, 0]).runs] == [0, 1]
    assert [run.id for run in experiment.select([1]).runs] == [1]


def test_selection_of_unknown_runs_names_them_and_the_known_ones(spec_file):
    with pytest.raises(SpecError) as caught:
        spec_file().experiment("quick").select([7, 1, 5])

    assert caught.value.problems == ["--only: there is no run 5, 7; the runs are 0, 1"]


def test_replicates_train_every_run_once_per_number(spec_file):
    experiment = spec_file().experiment("quick").replicates([0, 2])

    assert [(run.id, run.train.seed) for run in experiment.runs] == [
        (0, 0),
        (1, 1),
        (0, 2000),
        (1, 2001),
    ]
    assert len({run.key for run in experiment.runs}) == 4
    assert {run.profile for run in experiment.runs} == {"quick"}


def test_a_subset_is_runs_first_then_replicates(spec_file):
    experiment = spec_file().experiment("quick")

    assert experiment.subset(None, None) == experiment
    assert [(run.id, run.train.seed) for run in experiment.subset("1", "0..1").runs] == [
        (1, 1),
        (1, 1001),
    ]


@pytest.mark.parametrize(
    ("only", "seeds", "problem"),
    [
        ("a", None, f"--only a: 'a' is {NO_RANGE}"),
        (None, "3-1", "--seeds 3-1: the range 3-1 is empty"),
        ("9", None, "--only: there is no run 9; the runs are 0, 1"),
    ],
)
def test_a_wrong_subset_names_its_option(spec_file, only, seeds, problem):
    with pytest.raises(SpecError) as caught:
        spec_file().experiment("quick").subset(only, seeds)

    assert caught.value.problems == [problem]


def test_the_option_of_any_command_is_named():
    with pytest.raises(SpecError) as caught:
        parse_ids_option("--rerun", "x")

    assert caught.value.problems == [f"--rerun x: 'x' is {NO_RANGE}"]
    assert parse_ids_option("--rerun", "3,1") == (3, 1)
