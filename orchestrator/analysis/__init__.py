"""The meaning of stored numbers; nothing here writes files or prints.

A **cell** is one number of a table: published and measured. A **margin** is a test image's true
score minus its best other score. A **verdict** says whether a cell is reproduced. An **invariant**
must hold of every finished run. A **report** is all of these for one profile.
"""
