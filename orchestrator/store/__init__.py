"""The result store: a database with the record of every run.

Only one process at a time writes results to it: the driver.

SQLite in WAL mode by default, PostgreSQL on request. Only this package imports SQLAlchemy.

A **run** is stored with its settings, status and checkpoints. An **attempt** is one period in
which a driver trained the run. The **margins** are the score margins of the test images after the
last epoch. A **cell** is a published number of a table. A driver has a **heartbeat**, the time at
which it last wrote to the store.
"""

from orchestrator.errors import NewerStoreError, QueryError, StoreError, StoreLostError
from orchestrator.store.drivers import HEARTBEAT_S
from orchestrator.store.engine import exists
from orchestrator.store.records import (
    ENDED,
    Attempt,
    Checkpoint,
    Epoch,
    MetricRange,
    Status,
    StoredRun,
)
from orchestrator.store.snapshot import close_as_single_file, copy_run, snapshot
from orchestrator.store.writer import CHECKPOINTS_KEPT, Store

__all__ = [
    "CHECKPOINTS_KEPT",
    "ENDED",
    "HEARTBEAT_S",
    "Attempt",
    "Checkpoint",
    "Epoch",
    "MetricRange",
    "NewerStoreError",
    "QueryError",
    "Status",
    "Store",
    "StoreError",
    "StoreLostError",
    "StoredRun",
    "close_as_single_file",
    "copy_run",
    "exists",
    "snapshot",
]
