"""The published cells in the store, beside which its view `v_cells` shows the measured values."""

from collections.abc import Iterator, Mapping

from orchestrator.spec.experiment import Experiment
from orchestrator.store.writer import Store


def store_published_cells(experiment: Experiment, store: Store) -> None:
    """Write the published values of the whole profile, even if only some runs are selected."""
    store.replace_cells(experiment.profile, _cells(experiment.whole))


def _cells(experiment: Experiment) -> Iterator[Mapping[str, object] | None]:
    """Yield the cells in the order of the tables, None if the experiment lacks their run."""
    runs = {run.id: run for run in experiment.runs}
    for table in experiment.tables:
        for row in table.rows:
            run = runs.get(row.run)
            for column, published in zip(experiment.columns, row.published, strict=True):
                if run is None:
                    yield None
                    continue
                yield {
                    "table_id": table.id,
                    "row_label": row.label,
                    "column_title": column.title,
                    "run_id": run.id,
                    "seed": run.train.seed,
                    "digest": run.train.digest(),
                    "metric": column.metric,
                    "published": published,
                    "margin": experiment.margin(table, row, column),
                }
