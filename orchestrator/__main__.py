"""`python -m orchestrator`: the command line."""

import signal
import sys

import typer

from aol.errors import AOLError, is_unwritable
from orchestrator import environment
from orchestrator.cli import app
from orchestrator.errors import ExitCode

DISK_ADVICE = "free some space, or choose other folders with --results and TMPDIR"


def main() -> None:
    """Run the command line; our own errors and a full disk become one line.

    Others keep their traceback.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(environment.SIGTERM_EXIT))  # cleans up
    environment.prepare()
    try:
        app(prog_name="python -m orchestrator")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except AOLError as error:
        for line in str(error).splitlines():
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if not is_unwritable(error):
            raise
        where = f"{error.filename}: " if error.filename else ""
        typer.secho(f"Error: {where}{error.strerror}; {DISK_ADVICE}", err=True)
        sys.exit(ExitCode.FAILURE)


if __name__ == "__main__":
    main()
