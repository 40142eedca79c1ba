"""Decide what to train: the plan, its resources, what remains open, what a budget buys.

A **plan** lists each run with its action (new, continue, done, ...) and the reason.
"""
