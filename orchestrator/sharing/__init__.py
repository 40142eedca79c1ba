"""Results in and out: run folders, merged stores, bundles, exported networks.

A **bundle** is one zip of a profile's results that `verify` checks from the margins alone. A **run
folder** is what `python -m aol` writes on a machine without the orchestrator.
"""
