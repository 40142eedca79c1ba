"""The machine, versions and commit that results come from."""

import os
import platform
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from aol.checkout import checkout
from aol.config import FINGERPRINTS


def environment(device: torch.device, dataset: str) -> dict[str, Any]:
    """The machine, versions, commit (with `diff`, a patch) and images that results come from."""
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {"torch": torch.__version__, **_triton()},
        "cuda": torch.version.cuda,
        "device": str(device),
        **asdict(checkout()),
        "fingerprints": FINGERPRINTS[dataset],
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = _printed(query)
    return facts


def _triton() -> dict[str, str]:
    """Its version where it is there: it makes the kernels for GPUs."""
    try:
        return {"triton": version("triton")}
    except PackageNotFoundError:
        return {}


def _printed(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
