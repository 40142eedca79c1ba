"""The result store: a database with the record of every run. Only the driver writes to it.

SQLite in WAL mode by default, PostgreSQL on request. Only this package imports SQLAlchemy.

A **run** is stored with its settings, status and checkpoints. An **attempt** is one period in
which a driver trained the run. The **margins** are the score margins of the test images after the
last epoch. A **cell** is a published number of a table. Every open run has a **heartbeat**, the
time at which its driver was last known to be alive.
"""

from orchestrator.errors import NewerStoreError, QueryError, StoreError
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
    "Attempt",
    "Checkpoint",
    "Epoch",
    "MetricRange",
    "NewerStoreError",
    "QueryError",
    "Status",
    "Store",
    "StoreError",
    "StoredRun",
    "close_as_single_file",
    "copy_run",
    "exists",
    "snapshot",
]
