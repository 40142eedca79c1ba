"""`python -m orchestrator`: the command line."""

import os
import sys
from contextlib import suppress

from orchestrator import environment
from orchestrator.signals import Stopped, StopSignals, stop_signals

STDERR = 2  # file descriptor


def main() -> None:
    """Run the command line; our own errors become one line, others keep their traceback."""
    terminal = os.dup(STDERR)  # while Ray starts, the standard error is redirected
    with stop_signals(end_process=lambda: os._exit(_stopped(stop, terminal))) as stop:
        try:
            code = _call_app()
        except (Exception, Stopped):
            if stop.number is None:
                raise
        if stop.number is not None:
            code = _stopped(stop, terminal)
    os.close(terminal)
    sys.exit(code)


def _call_app() -> int | str | None:
    """Call the command line application; return the exit code."""
    environment.prepare()
    import typer

    from aol.errors import AOLError
    from orchestrator.cli import app

    try:
        app(prog_name="python -m orchestrator")
    except SystemExit as exit_:
        return exit_.code
    except AOLError as error:
        for line in str(error).splitlines():
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        return error.exit_code
    return 0


def _stopped(stop: StopSignals, terminal: int) -> int:
    """Print how to continue after a signal; return the exit code."""
    from orchestrator.formatting import repeat_command

    if sys.argv[1:2] == ["run"]:
        line = f"Stopped. The same command continues: {repeat_command()}\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(terminal, line.encode())  # without locks, which a blocked thread may hold
    return 128 + (stop.number or 0)


if __name__ == "__main__":
    main()
