"""The command line of `python -m aol`: train runs, certify images."""
