"""The command line of `python -m aol`: train without the orchestrator, certify images."""
