"""Training runs on a cluster with Ray Tune. Only this package imports Ray.

A **job** is a run with the resources it occupies and the checkpoints it can continue from. A
**trial** is a job in training, in Ray Tune's terms. An **event** is a frozen value that describes a
change of a run; a **recorder** is a callable that takes an event. The **control actor** passes
stop requests and checkpoints from the driver to the **workers**, the processes that train.
A **fault** is a failure of a machine, not of the run, which is tried again on another machine.
`worker`, `events`, `faults` and `storage` can be imported without importing Ray.
"""
