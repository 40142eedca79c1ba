"""The result store: a database that is the truth about every run. Only the driver writes.

SQLite in WAL mode by default, PostgreSQL on request. This package alone imports SQLAlchemy.
"""

from orchestrator.errors import NewerStoreError, QueryError, StoreError
from orchestrator.store.engine import exists
from orchestrator.store.records import Attempt, Checkpoint, Epoch, Status, StoredRun
from orchestrator.store.snapshot import copy_run, seal, snapshot
from orchestrator.store.writer import CHECKPOINTS_KEPT, Store

__all__ = [
    "CHECKPOINTS_KEPT",
    "Attempt",
    "Checkpoint",
    "Epoch",
    "NewerStoreError",
    "QueryError",
    "Status",
    "Store",
    "StoreError",
    "StoredRun",
    "copy_run",
    "exists",
    "seal",
    "snapshot",
]
