"""Peak memory of training steps in a process of their own.

`python -m benchmarks.memory ours std 50` prints it in MB.

Linux only: a child's `ru_maxrss` begins with its parent's, the kernel's VmHWM does not.
"""

import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

from aol.config import Kind, ModelConfig

STEPS = 3  # the first allocates momentum and gradients
Who = Literal["plain", "ours"]


def peak_mb(who: Who, kind: Kind, batch: int) -> float:
    """Peak resident memory of the steps above what the process had after its imports."""
    command = [sys.executable, "-m", "benchmarks.memory", who, kind, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the peak, in MB."""
    from benchmarks import contestants

    who, kind, batch = sys.argv[1:]
    kinds: dict[str, Kind] = {name: name for name in get_args(Kind)}
    before = _high_water_kib()
    config = contestants.config_of(ModelConfig(kind=kinds[kind]), int(batch))
    make = contestants.plain_training if who == "plain" else contestants.our_training
    run = make(config, contestants.initial(config.model))
    for _ in range(STEPS):
        run()
    print((_high_water_kib() - before) / 1000)


def _high_water_kib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
