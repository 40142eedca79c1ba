from dataclasses import replace

import pytest

from orchestrator.store.cells import store_published_cells

SQL = "SELECT place, run_id, seed, column_title, published, margin FROM cells ORDER BY place"


@pytest.mark.parametrize(
    "change",
    [
        lambda experiment: experiment,
        lambda experiment: experiment.select([22]),
        lambda experiment: experiment.replicates([1]),
        lambda experiment: experiment.select([0]).replicates([1, 2]),
    ],
)
def test_cells_of_the_whole_profile_with_base_seeds_are_stored(reported, store, change):
    store_published_cells(change(reported), store)
    _, rows = store.query(SQL)

    assert [row[:3] for row in rows] == [
        (place, run, run) for place, run in enumerate([0] * 5 + [22] * 10 + [0] * 5)
    ]
    assert rows[0] == (0, 0, 0, "accuracy", 70.0, 1.0)


def test_rows_whose_run_is_absent_are_skipped_and_kept(reported, store):
    partial = replace(reported, runs=reported.runs[:1])
    store_published_cells(partial, store)
    assert [row[0] for row in store.query(SQL)[1]] == [*range(5), *range(15, 20)]

    store_published_cells(reported, store)
    stored = store.query(SQL)
    store_published_cells(partial, store)

    assert store.query(SQL) == stored
    assert len(stored[1]) == 20
