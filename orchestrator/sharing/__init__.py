"""Import and export of results: run folders, merged stores, bundles, exported networks.

A **bundle** is a zip with the results of a profile, which `verify` checks without anything else.
A **run folder** is the output of `python -m aol`, which trains without the orchestrator. A **run
record** is the status, metrics and margins of a run; of two records of one run, the more complete
one wins, unless they are in **conflict**.
"""
