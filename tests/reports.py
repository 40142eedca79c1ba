"""Finished runs for the tests of the report."""

import numpy as np

from orchestrator.margins import share
from orchestrator.spec import RADII
from orchestrator.store import Status
from tests.stores import ORIGIN


def finish(store, run, shift, origin=ORIGIN):
    margins = np.linspace(-1, 3, 100, dtype="<f4") + np.float32(shift)
    store.queue([run])
    store.start(run, origin)
    for epoch in range(1, run.train.epochs + 1):
        rate = 0.1 if epoch < run.train.epochs else 0.01
        values = {name: share(margins, radius) for name, radius in RADII.items()}
        store.record(run.key, epoch, values | {"train_loss": 1 / epoch, "learning_rate": rate})
    certificate = {"arithmetic": "float64", "violations": []}
    store.finish(run.key, Status.DONE, margins=margins.tobytes(), certificate=certificate)
