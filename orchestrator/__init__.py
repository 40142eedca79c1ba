"""Train the runs of an experiments file, keep every number, and report them.

    from orchestrator import Store, load_experiment, make_report, plan, render, run

    experiment = load_experiment("experiments.yaml", profile="demo")
    outcome = run(experiment, only="0,22")
    with Store("results/store.db") as store:
        print(render(make_report(experiment, store), "md"))

Every error that a command reports in one line is an `AOLError`.
Importing this package imports nothing heavy: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aol.errors import AOLError
    from orchestrator.analysis.report import Report, make_report
    from orchestrator.driver.run import RunOutcome, run
    from orchestrator.errors import OrchestratorError
    from orchestrator.planning.plan import PlannedRun, plan
    from orchestrator.reporting.render import render
    from orchestrator.spec.experiment import Experiment
    from orchestrator.spec.loader import load_experiment
    from orchestrator.store import Store

_MODULES = {
    "AOLError": "aol.errors",
    "Experiment": "orchestrator.spec.experiment",
    "OrchestratorError": "orchestrator.errors",
    "PlannedRun": "orchestrator.planning.plan",
    "Report": "orchestrator.analysis.report",
    "RunOutcome": "orchestrator.driver.run",
    "Store": "orchestrator.store",
    "load_experiment": "orchestrator.spec.loader",
    "make_report": "orchestrator.analysis.report",
    "plan": "orchestrator.planning.plan",
    "render": "orchestrator.reporting.render",
    "run": "orchestrator.driver.run",
}

__all__ = [
    "AOLError",
    "Experiment",
    "OrchestratorError",
    "PlannedRun",
    "Report",
    "RunOutcome",
    "Store",
    "load_experiment",
    "make_report",
    "plan",
    "render",
    "run",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
