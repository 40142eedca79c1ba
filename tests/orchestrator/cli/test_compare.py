import json

from orchestrator.analysis.compare import compare_runs
from orchestrator.cli.compare import comparison_table, cra_table
from tests.support.reports import finish_with_margins


def test_the_comparison_table_is_in_percent_and_the_json_in_fractions(reported, store):
    finish_with_margins(store, reported.runs[0], [1.0] * 60 + [-1.0] * 40)
    finish_with_margins(store, reported.runs[1], [1.0] * 70 + [-1.0] * 30)
    comparisons = compare_runs(reported, store, (0, 22))
    text = comparison_table(reported, comparisons, (0, 22))
    first_row = text.splitlines()[4].split()

    assert first_row[:4] == ["accuracy", "60.0", "70.0", "+10.0"]
    assert first_row[-3:] == ["0", "10", "0.002"]
    assert text.startswith("demo: not comparable\n\n")
    plain = json.loads(comparison_table(reported, comparisons, (0, 22), as_json=True))
    record = plain.pop("columns")["accuracy"]
    assert plain == {"profile": "demo", "note": "demo: not comparable", "runs": [0, 22]}
    assert (record["first"], record["second"], record["only_second"]) == (0.6, 0.7, 10)


def test_the_cra_table_has_a_row_per_finished_run(reported, store):
    finish_with_margins(store, reported.runs[0], [0.5, 1.0, 2.0, -1.0])
    note, _, *rows = cra_table(reported, store, 0.5).splitlines()
    (record,) = json.loads(cra_table(reported, store, 0.5, as_json=True))

    assert rows[2].split() == ["0", "AOL-Small", "digits", "0", "50.0"]
    assert len(rows) == 3
    assert (record["run_id"], record["radius"], record["cra"]) == (0, 0.5, 0.5)
    assert note == record["note"] == "demo: not comparable"
    assert record["profile"] == "demo"
