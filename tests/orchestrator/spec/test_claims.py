import pytest

from orchestrator.spec.claims import KINDS, radius_of
from tests.support.specs import GOOD

ANY = ", ".join(KINDS)


def with_claim(text):
    return GOOD + f"claims:\n  - {{id: C1, text: so it is, {text}}}\n"


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ("source: page 3", f"claim C1: needs one of {ANY}; found none"),
        (
            "highest: {run: 0, runs: 0-1, column: Acc}, at_most: {column: Acc, value: 9}",
            f"claim C1: needs one of {ANY}; found highest and at_most",
        ),
        ("heighest: {run: 0, runs: 0-1, column: Acc}", "claims.0.heighest: unknown field; did you"),
        ("increases: {runs: 0-1, column: Acc}", "claims.0.increases.runs: "),
        (
            "highest: {run: 7, runs: '0,7', column: Acc}",
            "claim C1: there is no run 7; the",
        ),
        (
            "highest: {run: 0, runs: 0-1, column: Ac}",
            "claim C1: no column 'Ac'; did you mean",
        ),
        ("highest: {run: 0, runs: 0-1, column: CRA x}", "claim C1: no column 'CRA x'"),
        ("above: {orders: [[0]]}", "claims.0.above.orders.0: "),
        ("above: {orders: [[0, 9]]}", "claim C1: there is no run 9; the runs are 0, 1"),
        ("above: {orders: [[0, 1]], columns: [None]}", "claim C1: no column 'None'"),
        ("moves: {runs: 0-1, best: {Acc: 3}}", "claim C1: Acc: run 3 is not among its `runs`"),
        (
            "moves: {runs: 0-1, best: {Acc: 0-1}}",
            "claim C1: Acc: names every run",
        ),
        ("above: {orders: [[1, 0, 1]]}", "claim C1: run 1 occurs twice in an order"),
        ("above: {orders: [[0, 1]], columns: [Acc, Acc]}", "claim C1: column 'Acc' occurs twice"),
        ("at_most: {column: Acc}", "claims.0.at_most.value: is missing"),
        ("at_most: {column: Acc, value: high}", "claims.0.at_most.value: "),
    ],
)
def test_a_mistake_in_a_claim_is_one_line_with_its_place(problems_in, claim, problem):
    (found,) = problems_in(text=with_claim(claim))

    assert found.startswith(f"x.yaml:{GOOD.count(chr(10)) + 2}: ")
    assert problem in found


def test_a_difference_to_the_same_column_claims_nothing(problems_in):
    third = "  - {id: 2, name: C, seed: 2, model: {kind: conv}}\nprofiles:"
    text = with_claim("increases: {runs: 0-2, column: Acc, minus: Acc}")
    (found,) = problems_in(text=text.replace("profiles:", third))

    assert found.endswith("claim C1: is 'Acc' like `column`, which claims nothing")


def test_the_id_of_a_claim_is_not_that_of_a_run(problems_in):
    text = with_claim("above: {orders: [[0, 1]]}").replace("id: C1", "id: 1")

    assert any("claims.0.id: " in line for line in problems_in(text=text))


def test_the_highest_run_is_one_of_the_runs_compared(problems_in):
    third = "  - {id: 2, name: C, seed: 2, model: {kind: conv}}\nprofiles:"
    text = with_claim("highest: {run: 1, runs: '0, 2', column: Acc}").replace("profiles:", third)
    (found,) = problems_in(text=text)

    assert found.endswith("claim C1: run 1 is not among its `runs`")


def test_two_claims_with_one_id_are_a_mistake(problems_in):
    one = "  - {id: C1, text: so, at_most: {column: Acc, value: 9}}\n"
    (found,) = problems_in(text=f"{GOOD}claims:\n{one}{one}")

    assert "claim 'C1' is already defined at " in found


@pytest.mark.parametrize(
    ("claim", "kind", "runs", "columns"),
    [
        ("increases: {runs: 0-2, column: Acc, minus: CRA}", "increases", (0, 1, 2), ("Acc", "CRA")),
        ("lowest: {run: 1, runs: 0-1, column: CRA 1/4}", "lowest", (0, 1), ("CRA 1/4",)),
        ("above: {orders: [[0, 1]]}", "above", (0, 1), ("Acc", "CRA")),
        ("above: {orders: [[1, 0]], columns: [Acc]}", "above", (1, 0), ("Acc",)),
        ("moves: {runs: 0-2, best: {Acc: 0-1}}", "moves", (0, 1, 2), ("Acc",)),
        ("at_most: {column: layer norm, value: √2}", "at_most", (0, 1, 2), ("layer norm",)),
        ("at_least: {runs: 1, column: Acc, value: 3}", "at_least", (1,), ("Acc",)),
    ],
)
def test_each_relation_names_its_runs_and_columns(spec_file, claim, kind, runs, columns):
    third = "  - {id: 2, name: C, seed: 2, model: {kind: conv}}\nprofiles:"
    text = with_claim(claim).replace("profiles:", third)
    experiment = spec_file(text=text).experiment("quick")
    (found,) = experiment.claims

    assert found.kind == kind
    assert found.runs_among(run.id for run in experiment.runs) == runs
    assert found.columns_among(column.title for column in experiment.columns) == columns


@pytest.mark.parametrize(
    ("column", "radius"),
    [("CRA 1/4", 0.25), ("CRA 36/255", 36 / 255), ("CRA 1", 1.0), ("CRA", None), ("CRA -1", None)],
)
def test_a_column_of_any_radius_is_read(column, radius):
    assert radius_of(column) == radius
