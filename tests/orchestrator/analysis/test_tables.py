from dataclasses import asdict, replace

import pytest
from sqlalchemy import update

from orchestrator.analysis.tables import fill_tables
from orchestrator.errors import RecordError
from orchestrator.store.models import RunRow


def test_results_of_other_settings_with_the_same_digest_are_in_no_table(reported, store):
    run = reported.runs[0]
    store.queue([run])
    forged = asdict(replace(run.train, batch_size=10))
    with store.engine.begin() as connection:
        connection.execute(update(RunRow).values(config=forged))

    with pytest.raises(RecordError, match=rf"run {run.key} has other settings in the store"):
        fill_tables(reported, store)
