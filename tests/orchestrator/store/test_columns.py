from contextlib import closing

import pytest
from sqlalchemy import text

from orchestrator.errors import StoreError
from orchestrator.store import Store
from tests.support.reports import finish


@pytest.fixture
def store(tmp_path, make_run):
    with closing(Store(tmp_path / "store.db")) as opened:
        finish(opened, make_run(7), 0.0)
        yield opened


def read(store):
    for run in store.runs():
        store.metrics(run.key), store.margins(run.key), store.recorded_at(run.key)
        store.attempts(run.key)
    store.frame()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("runs SET config = '{\"mo}'", "a stored value is not JSON: "),
        ("runs SET certificate = printf('%.*c', 200000, '[')", "it is nested too deeply"),
        ("runs SET certificate = '\"\\ud800\"'", "a stored value is not JSON: "),
        ("runs SET config = '[]'", "list is stored where dict belongs"),
        ("runs SET checkpoints = '{}'", "dict is stored where list belongs"),
        ("runs SET checkpoints = '[{\"epoch\": 1}]'", "the record of the run 7-s7-"),
        ('runs SET checkpoints = \'[{"epoch": 1, "path": 1}]\'', "is not a checkpoint"),
        ("runs SET packages = '{\"torch\": 2}'", "the version of the package torch is 2"),
        ("runs SET status = 'dnoe'", "'dnoe' is not a valid Status"),
        ("runs SET epochs = 'three'", "str is stored where int belongs"),
        ("runs SET name = x'ff'", "bytes is stored where str belongs"),
        ("runs SET created_at = '2026-01-01'", "where a time with its zone belongs"),
        ("runs SET started_at = '0001-01-01T00:00+14:00'", "where a time with its zone belongs"),
        ("metrics SET value = 'high'", "str is stored where float belongs"),
        ("margins SET \"values\" = 'ab'", "str is stored where bytes belongs"),
        ("attempts SET from_epoch = 0.5", "float is stored where int belongs"),
        ("epochs SET recorded_at = 'today'", "'today' is stored where a time"),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_a_one_line_error(store, change, message):
    with store.engine.begin() as connection:
        connection.execute(text(f"UPDATE {change.replace(':', chr(92) + ':')}"))

    with pytest.raises(StoreError) as caught:
        read(store)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "store.db is damaged: " in str(caught.value)
