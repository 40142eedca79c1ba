"""One invocation: its session, the run from plan to tables, and the recorders.

The **driver** is the process in which `run` was started. It alone writes the store and MLflow.
"""
