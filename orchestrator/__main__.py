"""`python -m orchestrator`: the command line."""

import signal
import sys

import typer

from aol.cli.terminal import use_terminal_encoding
from aol.errors import AOLError
from orchestrator import environment
from orchestrator.cli import app
from orchestrator.errors import RequestError


def main() -> None:
    """Run the command line; our own errors become one line, others keep their traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(environment.SIGTERM_EXIT))  # cleans up
    environment.prepare()
    use_terminal_encoding()
    try:
        require_text(sys.argv[1:])
        app(prog_name="python -m orchestrator")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except AOLError as error:
        for line in str(error).splitlines():
            typer.secho(f"Error: {line}" if not line.startswith(" ") else line, err=True)
        sys.exit(error.exit_code)


def require_text(arguments: list[str]) -> None:
    """Raise RequestError if an argument is not UTF-8: neither SQL nor JSON could hold it."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise RequestError(f"the argument {argument!a} is not UTF-8") from None


if __name__ == "__main__":
    main()
