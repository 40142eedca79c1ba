"""Train two runs of the demo from Python, then print the tables.

    python examples/run_and_report.py [experiments.yaml]

Results go to `results/` beside the YAML file. Run the script again and nothing is trained.
"""

import sys
from pathlib import Path

from orchestrator import Store, load_experiment, make_report, plan, render, run


def main(path: Path) -> None:
    """Plan, train and report the runs 0 and 11 of the profile `demo`."""
    experiment = load_experiment(path, profile="demo")
    location = path.parent / "results" / "store.db"

    with Store(location) as store:
        for item in plan(experiment.select([0, 11]), store):
            print(f"run {item.run.id} {item.run.name}: {item.action}, {item.reason}")

    outcome = run(experiment, only="0,11")
    for stored in outcome.runs:
        print(f"run {stored.run_id}: {stored.status} after {stored.epoch} epochs")

    with Store(location) as store:
        print(render(make_report(experiment, store), "md"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "experiments.yaml"))
