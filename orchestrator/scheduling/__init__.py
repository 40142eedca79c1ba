"""Run training jobs on a cluster with Ray Tune. Only this package imports Ray.

A **job** is a run with the resources it occupies and the checkpoints it can continue from. A
**trial** is Ray's word for a job in training. An **event** is a frozen value that says what
happened to a run; a **recorder** is a function of one event. `worker`, `events` and `storage` can
be imported without importing Ray.
"""
