"""The errors of the orchestrator, and the exit codes of the command line.

The base of every error that a command reports without a traceback is `aol.errors.AOLError`, because
the core has such errors too: `DataError`, `CheckpointError`, `ModelError`. A message says where the
fault is, what was found, and what to do.
"""

from enum import IntEnum

from aol.errors import AOLError
from orchestrator.masking import mask_secrets


class ExitCode(IntEnum):
    """Exit codes of `python -m orchestrator`; a signal adds its number to 128."""

    OK = 0
    FAILURE = 1  # a runtime failure (disk, network, cluster, MLflow), or conflicting results
    USAGE = 2  # a mistake in the input, or a request that cannot be met
    UNFINISHED = 3  # some runs failed, diverged, are unsound or not finished
    VIOLATION = 4  # a result breaks an invariant, or a bundle contradicts itself


class OrchestratorError(AOLError):
    """Base of the orchestrator's own errors; passwords in their messages are masked."""

    exit_code: int = ExitCode.FAILURE

    def __init__(self, message: str) -> None:
        super().__init__(mask_secrets(message))


class SpecError(OrchestratorError):
    """Raised when the YAML file or an option is wrong; one line per mistake in `problems`."""

    exit_code = ExitCode.USAGE

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class RequestError(OrchestratorError):
    """Raised when a command asks for something that does not exist or does not fit."""

    exit_code = ExitCode.USAGE


class ResourceError(OrchestratorError):
    """Raised when the cluster or the disk cannot provide what a run needs; a line per reason."""

    exit_code = ExitCode.USAGE


class BundleError(OrchestratorError):
    """Raised when a file is not a bundle, or nothing can be bundled."""

    exit_code = ExitCode.USAGE


class QueryError(OrchestratorError):
    """Raised when the database rejects a SQL query."""

    exit_code = ExitCode.USAGE


class StoreError(OrchestratorError):
    """Raised when the result store cannot be used."""


class NewerStoreError(StoreError):
    """Raised when a newer version of the program wrote the result store."""


class StoreLostError(StoreError):
    """Raised when another driver took over the result store; nothing more may be written."""


class TrackingError(OrchestratorError):
    """Raised when MLflow fails; the result store is complete all the same."""


class SchedulingError(OrchestratorError):
    """Raised when Ray gives up; running the same command again continues the runs."""


class OutputError(OrchestratorError):
    """Raised when a file or folder cannot be written."""


class RecordError(OrchestratorError):
    """Raised when stored or imported results are damaged or contradict each other."""


class CheckFailedError(OrchestratorError):
    """Raised when results break an invariant, or a bundle contradicts itself; a line each."""

    exit_code = ExitCode.VIOLATION
