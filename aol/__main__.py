"""`python -m aol`: train runs; `python -m aol certify`: certify images."""

import signal
import sys

from aol.cli.terminal import use_terminal_encoding


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    use_terminal_encoding()
    if arguments[:1] == ["certify"]:
        from aol.cli.certify import main as certify

        return certify(arguments[1:])
    from aol.cli.train import main as train

    return train(arguments)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
