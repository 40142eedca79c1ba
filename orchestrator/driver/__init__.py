"""One invocation of `run`: from the plan over training to the tables.

The **driver** is the process of `run`, the only one that writes to the store and to MLflow. A
**session** is an invocation with its options, experiment and cluster. An **observer** receives its
messages and progress; a **recorder** receives the events of runs.
"""
