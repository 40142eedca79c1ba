"""The command line: one module per command or two; each parses, calls and prints."""

from orchestrator.cli import (
    compare,
    explain,
    export,
    missing,
    query,
    report,
    run,
    spec,
    status,
    transfer,
)
from orchestrator.cli.options import app

__all__ = [
    "app",
    "compare",
    "explain",
    "export",
    "missing",
    "query",
    "report",
    "run",
    "spec",
    "status",
    "transfer",
]
