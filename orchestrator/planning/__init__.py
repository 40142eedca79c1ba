"""Planning of what to train: the plan, its resources, the remaining work, a budget.

A **plan** lists each run with its action (new, continue, done, ...) and the reason for it. The
**remaining work** is what would resolve the cells whose verdict is still undecided.
"""
