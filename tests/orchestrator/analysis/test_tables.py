from dataclasses import asdict, replace

from sqlalchemy import update

from orchestrator.analysis.tables import fill_tables, runs_of
from orchestrator.store import Status
from orchestrator.store.models import RunRow


def test_results_of_other_settings_with_the_same_digest_are_in_no_table(reported, store):
    run = reported.runs[0]
    store.queue([run])
    store.record(run.key, run.train.epochs, {"cra_36": 0.5})
    store.finish(run.key, Status.DONE)
    before = runs_of(reported, store)[run.id]
    with store.engine.begin() as connection:
        forged = asdict(replace(run.train, batch_size=10))
        connection.execute(update(RunRow).values(config=forged))
    cells = [cell for table in fill_tables(reported, store) for row in table.cells for cell in row]

    assert [found.key for found in before] == [run.key]
    assert {cell.measured for cell in cells} == {None}
