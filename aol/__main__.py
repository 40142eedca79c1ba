"""`python -m aol`: train runs; `python -m aol certify`: certify images."""

import sys


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if arguments[:1] == ["certify"]:
        from aol.cli.certify import main as certify

        return certify(arguments[1:])
    from aol.cli.train import main as train

    return train(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
