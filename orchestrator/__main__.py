"""`python -m orchestrator`: the command line."""

import os
import sys
from contextlib import suppress

from orchestrator import environment
from orchestrator.signals import Stopped, StopSignals, stop_signals

STDERR = 2  # file descriptor
DISK_ADVICE = "free some space, or choose other folders with --results and TMPDIR"


def main() -> None:
    """Run the command line; our own errors and a full disk become one line.

    Others keep their traceback.
    """
    terminal = os.dup(STDERR)  # while Ray starts, the standard error is redirected
    code: int | str | None = None
    with (
        suppress(Stopped),
        stop_signals(end_process=lambda: os._exit(_stopped(stop, terminal))) as stop,
    ):
        try:
            code = _call_app()
        except Exception:
            if stop.number is None:
                raise
    if stop.number is not None:
        code = _stopped(stop, terminal)
    os.close(terminal)
    sys.exit(code)


def _call_app() -> int | str | None:
    """Call the command line application; return the exit code."""
    environment.prepare()
    import logging
    import traceback
    from typing import Any

    import typer

    from aol.cli.terminal import use_terminal_encoding
    from aol.errors import AOLError, is_unwritable
    from aol.text import printable_lines
    from orchestrator.cli import app
    from orchestrator.errors import ExitCode
    from orchestrator.masking import SafeFormatter, mask_secrets

    click_error: Any = typer.BadParameter.__mro__[2]  # of click, or of Typer's copy of it
    if logging.lastResort:  # prints the warnings of libraries
        logging.lastResort.setFormatter(SafeFormatter())
    use_terminal_encoding()
    try:
        require_text(sys.argv[1:])
        code: int | str | None = app(prog_name="python -m orchestrator", standalone_mode=False)
    except SystemExit as exit_:
        return exit_.code
    except click_error as error:
        error.message = printable_lines(mask_secrets(error.message))
        error.show()
        return int(error.exit_code)
    except AOLError as error:
        for line in printable_lines(mask_secrets(str(error))).split("\n"):
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        return error.exit_code
    except Exception as error:
        text = traceback.format_exc()
        if isinstance(error, OSError) and is_unwritable(error):
            where = f"{error.filename}: " if error.filename else ""
            text = f"Error: {where}{error.strerror}; {DISK_ADVICE}\n"
        typer.echo(printable_lines(mask_secrets(text)), err=True, nl=False)
        return ExitCode.FAILURE
    return code


def _stopped(stop: StopSignals, terminal: int) -> int:
    """Print how to continue after a signal; return the exit code."""
    from orchestrator.formatting import repeat_command

    if sys.argv[1:2] == ["run"]:
        line = f"Stopped. The same command continues: {repeat_command()}\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(terminal, line.encode())  # without locks, which a blocked thread may hold
    return 128 + (stop.number or 0)


def require_text(arguments: list[str]) -> None:
    """Raise RequestError if an argument is not UTF-8: neither SQL nor JSON could hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            from orchestrator.errors import RequestError

            raise RequestError(f"the argument {argument!a} is not UTF-8") from None


if __name__ == "__main__":
    main()
