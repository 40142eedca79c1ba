"""`python -m orchestrator`: the command line."""

import signal
import sys

import typer

from aol.errors import AOLError
from orchestrator import environment
from orchestrator.cli import app


def main() -> None:
    """Run the command line; our own errors become one line, others keep their traceback."""
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


if __name__ == "__main__":
    main()
