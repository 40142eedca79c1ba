"""Reading and checking the YAML file of experiments.

A **run** is one row of the paper: an ID, a name and its training settings. A **profile** is a way
to train all runs. An **experiment** is one profile of a file: its runs and the tables they fill.
`source` keeps the line of every value, so that every mistake is reported with its place.
"""
