"""`python -m orchestrator`: the command line."""

import sys

import typer

from orchestrator import environment
from orchestrator.commands import app


def main() -> None:
    """Run the command line; our own errors become one line, anything else keeps its traceback.

    Our errors say their exit code: 2 for mistakes in the input, 1 for what failed in the world.
    """
    environment.prepare()
    try:
        app(prog_name="python -m orchestrator")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        for line in str(error).splitlines():
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
