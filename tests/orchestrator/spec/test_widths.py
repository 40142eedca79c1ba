from fractions import Fraction

import pytest

from orchestrator.spec.widths import format_fraction

MAXMIN = "MaxMin pairs channels, every width must be even, not"
CHANGE = '[{runs: "1", set: {batch_size: 20, model: {size: 8}}}]'


def few(outputs, classes):
    return f"the last layer has {outputs} outputs, {classes} classes need more; nearest that fit:"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("conv}", "conv, size: 3}", f"size: got 3: {MAXMIN} 3; nearest that fit: 2 and 4"),
        ("conv}", "conv, width: 0.2}", f"width: got 0.2: {MAXMIN} 3; nearest that fit: 0.125 and"),
        ("conv}", "std, width: 0.01}", f"width: got 0.01: {few(0, 10)} 0.0625"),
        ("conv}", "fc, width: 0.002}", f"width: got 0.002: {few(8, 10)} 5/2048"),
        (
            "conv}",
            "fc, width: 1e300}",
            "width: got 1e+300: a layer has at most 1048576 channels; nearest that fit: 256",
        ),
        (
            "conv}",
            "patchwise, size: 200}",
            "size: got 200: size 200 keeps more channels than the convolutions have, 192; "
            "nearest that fit: 192",
        ),
    ],
)
def test_an_impossible_network_is_a_mistake_with_its_line(problems_in, old, new, problem):
    found = problems_in((old, new), (CHANGE, "[]"))

    assert len(found) == 1
    assert found[0].startswith(f"x.yaml:8: run 1: model.{problem}")


def test_a_width_of_a_profile_has_the_profiles_line(problems_in):
    assert problems_in((CHANGE, "\n    - {set: {model: {width: 0.14}}}")) == [
        f"x.yaml:13: run 0: model.width: got 0.14: {MAXMIN} 27; nearest that fit: 13/96 and 7/48"
    ]


def test_wrong_widths_are_reported_with_all_other_mistakes(problems_in):
    found = problems_in(
        ("epochs: 4", "epochs: x"),
        ("{name: digits}", "{name: digits, augmnt: true}"),
        ("conv}", "conv, size: 3}"),
        (CHANGE, "[]"),
        ("run: 0", "run: 9"),
    )

    assert [line.split(":")[1] for line in found] == ["3", "4", "8", "17"]


@pytest.mark.parametrize("wrong", ["kind: cnv, size: 3", "kind: conv, size: 3, width: x"])
def test_a_wrong_model_is_one_mistake(problems_in, wrong):
    (problem,) = problems_in(("kind: conv", wrong), (CHANGE, "[]"))

    assert "MaxMin" not in problem


def test_without_a_dataset_widths_are_not_checked(problems_in):
    (problem,) = problems_in(("digits", "digit"), ("conv}", "conv, size: 3}"), (CHANGE, "[]"))

    assert problem.startswith("x.yaml:4: runs 0, 1: data.name: ")


def test_values_that_fit_are_those_of_all_runs_that_share_the_place(spec_file, problems_of_set):
    """
    AOL-Small has 27 channels and AOL-Conv of size 8 has one.
    """
    advice = {
        problem.rpartition("that fit: ")[2] for problem in problems_of_set("model.width=0.14")
    }
    (widths,) = advice

    for width in widths.split(" and "):
        assert spec_file().experiment("quick", [f"model.width={width}"])


@pytest.mark.parametrize(
    ("overrides", "place", "field"),
    [
        (["model.width=0.14"], "model.width", "width: got 0.14"),
        (["model.size=3"], "model.size", "size: got 3"),
        (["model.kind=fc", "model.width=1e-9"], "model.width", "width: got 1e-09"),
        (["model.width=1/64", "model.kind=fc", "data.name=cifar100"], "model.width", "width: got"),
    ],
)
def test_the_override_at_fault_is_named(problems_of_set, overrides, place, field):
    assert problems_of_set(*overrides)[0].partition(": run")[0] == f"--set {place}"
    assert f"model.{field}" in problems_of_set(*overrides)[0]


@pytest.mark.parametrize("override", ["model.kind=std", "data.name=cifar100"])
def test_an_override_that_makes_a_width_of_the_file_wrong_is_named(spec_file, override):
    """
    64 outputs are enough for 10 classes; 1/64 of AOL-STD's 32 channels is none.
    """
    file = spec_file(("kind: patchwise}", "kind: fc, width: 1/64}"), ("kind: conv", "kind: fc"))

    with pytest.raises(
        Exception, match=rf"^--set {override.partition('=')[0]}: run 0: model.width"
    ):
        file.experiment("quick", [override])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(1, 8), "0.125"),
        (Fraction(26, 192), "13/96"),
        (Fraction(16), "16"),
        (Fraction(1, 4096), "1/4096"),
        (Fraction(2**20), "1048576"),
    ],
)
def test_values_are_formatted_as_the_file_accepts_them(value, text):
    assert format_fraction(value) == text
