"""Peak memory of training steps: `python -m benchmarks.memory ours std 50`, one process each."""

import resource
import subprocess
import sys
from typing import Literal

STEPS = 3  # the first allocates momentum and gradients
Who = Literal["plain", "ours"]


def peak_mb(who: Who, kind: str, batch: int) -> float:
    """Peak resident memory of the steps above what the process had after its imports."""
    command = [sys.executable, "-m", "benchmarks.memory", who, kind, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the peak, in MB."""
    from benchmarks import contestants

    who, kind, batch = sys.argv[1:]
    imported = _peak_kib()
    make = contestants.plain_step if who == "plain" else contestants.our_step
    run = make(kind, int(batch))  # type: ignore[arg-type] # from `peak_mb`
    for _ in range(STEPS):
        run()
    print((_peak_kib() - imported) / 1000)


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
