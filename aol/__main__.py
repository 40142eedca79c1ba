"""`python -m aol`: train runs, or certify images."""

import sys

from aol.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
