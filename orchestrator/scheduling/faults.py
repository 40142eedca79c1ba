"""Faults of machines, told apart from errors of runs. Does not import Ray."""

import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum

from aol.errors import first_line, is_unwritable
from orchestrator.formatting import pluralize

SMOKE_TEST = """
import torch

for number in range(torch.cuda.device_count()):
    ones = torch.ones(64, 64, device=f"cuda:{number}")
    assert float((ones @ ones).sum()) == 64**3, f"GPU {number} multiplies wrongly"
print(torch.cuda.device_count())
"""
SMOKE_TIMEOUT_S = 120.0
GPU_FAILURE = re.compile(
    r"CUDA error|CUDA unknown error|CUDA driver|NVIDIA driver|No CUDA GPUs|cudaGetDeviceCount"
    r"|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|not compiled with CUDA"
)
ERROR_OF_THE_RUN = re.compile(r"device-side assert")  # an index out of range, on any GPU
NO_MEMORY = re.compile(r"out of memory|allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
NEEDED = re.compile(r"(?:[Tt]ried|Unable) to allocate ([\d.]+ \w+)")
FREE = re.compile(r"of which ([\d.]+ \w+) is free")


class FaultKind(StrEnum):
    """The part of a machine that failed a run."""

    GPU = "gpu"
    MEMORY = "memory"
    DISK = "disk"  # full or read-only


@dataclass(frozen=True)
class Fault:
    """A fault of a machine, with its name in the text."""

    kind: FaultKind
    text: str


class MachineError(Exception):
    """Raised when a machine failed, not the run, which is then tried again."""


def find_fault(error: Exception) -> Fault | None:
    """Return the fault of this machine that an error shows, None if it is an error of the run."""
    text = str(error)
    if is_unwritable(error):
        return Fault(FaultKind.DISK, f"{socket.gethostname()}: {first_line(error)}")
    if isinstance(error, MemoryError) or NO_MEMORY.search(text):
        return Fault(FaultKind.MEMORY, _describe_memory(text))
    if GPU_FAILURE.search(text) and not ERROR_OF_THE_RUN.search(text):
        reason = f"{type(error).__name__}: {first_line(error)}"
        return Fault(FaultKind.GPU, f"CUDA fails on {socket.gethostname()}: {reason}")
    return None


def find_gpu_problem(expected: float) -> str | None:
    """Multiply on every GPU here, in a process of its own that frees their memory at its end.

    Returns what keeps this machine from training on as many GPUs as expected.
    """
    command = [sys.executable, "-c", SMOKE_TEST]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=SMOKE_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return f"its GPUs did not multiply within {SMOKE_TIMEOUT_S:.0f} s"
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"its GPUs do not work: {reason}"
    found = int(done.stdout)
    if found < expected:
        return f"Ray was started with {pluralize(expected, 'GPU')}, but torch finds {found}"
    return None


def _describe_memory(text: str) -> str:
    """Return the amounts that a message of an allocator has, completed by those of this host."""
    import psutil

    needed, free = NEEDED.search(text), FREE.search(text)
    host_free = f"{psutil.virtual_memory().available / 2**30:.1f} GiB"
    return (
        f"out of memory on {socket.gethostname()}: {needed[1] if needed else 'an unknown amount'} "
        f"needed, {f'{free[1]} of the GPU' if free else f'{host_free} of the host'} free"
    )
