"""Analysis of stored results: tables, margins, verdicts, invariants. Writes and prints nothing.

A **cell** is one number of a paper's table, published and measured. A **margin** of a test image
is the score of its true class minus the best other score. A **verdict** is the outcome of testing
whether a cell is reproduced. An **invariant** is a property that every finished run must have. A
**report** contains all of these for one profile.
"""
