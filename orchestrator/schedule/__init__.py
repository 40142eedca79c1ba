"""Ray Tune trains the jobs of an invocation. The only package that imports Ray."""

from orchestrator.schedule.machines import check_storage, cluster, prepare_machines
from orchestrator.schedule.trials import Job, Options, discard, opened, run_all

__all__ = [
    "Job",
    "Options",
    "check_storage",
    "cluster",
    "discard",
    "opened",
    "prepare_machines",
    "run_all",
]
