"""`python -m orchestrator`: the command line."""

import logging
import signal
import sys
import traceback
from typing import Any

import typer

from aol.errors import AOLError, is_unwritable
from aol.text import printable_lines
from orchestrator import environment
from orchestrator.cli import app
from orchestrator.errors import ExitCode
from orchestrator.masking import SafeFormatter, mask_secrets

DISK_ADVICE = "free some space, or choose other folders with --results and TMPDIR"
CLICK_ERROR: Any = typer.BadParameter.__mro__[2]  # of click, or of Typer's copy of it


def main() -> None:
    """Run the command line; our own errors and a full disk become one line.

    Others keep their traceback.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(environment.SIGTERM_EXIT))  # cleans up
    environment.prepare()
    if logging.lastResort:  # prints the warnings of libraries
        logging.lastResort.setFormatter(SafeFormatter())
    try:
        sys.exit(app(prog_name="python -m orchestrator", standalone_mode=False))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except CLICK_ERROR as error:
        error.message = printable_lines(mask_secrets(error.message))
        error.show()
        sys.exit(error.exit_code)
    except AOLError as error:
        for line in printable_lines(mask_secrets(str(error))).split("\n"):
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        text = traceback.format_exc()
        if isinstance(error, OSError) and is_unwritable(error):
            where = f"{error.filename}: " if error.filename else ""
            text = f"Error: {where}{error.strerror}; {DISK_ADVICE}\n"
        typer.echo(printable_lines(mask_secrets(text)), err=True, nl=False)
        sys.exit(ExitCode.FAILURE)


if __name__ == "__main__":
    main()
