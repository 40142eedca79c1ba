"""Peak memory of training steps in a separate process, on Linux.

`python -m benchmarks.memory ours std 50` prints it in MB. It is the kernel's VmHWM, because
`ru_maxrss` of a child process includes that of its parent.
"""

import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args

from aol.config import Kind, ModelConfig

STEPS = 3  # the first allocates momentum and gradients
Implementation = Literal["plain", "ours"]


def peak_mb(implementation: Implementation, kind: Kind, batch: int) -> float:
    """Return the peak resident memory of the steps, without that of the imports."""
    command = [sys.executable, "-m", "benchmarks.memory", implementation, kind, str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print the peak, in MB."""
    from benchmarks import implementations

    implementation, kind, batch = sys.argv[1:]
    kinds: dict[str, Kind] = {name: name for name in get_args(Kind)}
    before = peak_kib()
    config = implementations.train_config(ModelConfig(kind=kinds[kind]), int(batch))
    make = (
        implementations.plain_training
        if implementation == "plain"
        else implementations.our_training
    )
    run = make(config, implementations.initial_model(config.model))
    for _ in range(STEPS):
        run()
    print((peak_kib() - before) / 1000)


def peak_kib() -> int:
    """Return this process's peak resident memory so far, in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main()
