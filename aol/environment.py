"""The machine, versions and commit that results come from."""

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from aol.config import FINGERPRINTS

COMMIT_FILE = Path(__file__).parent / "COMMIT"  # in source that was packed without its history


def environment(device: torch.device, dataset: str) -> dict[str, Any]:
    """The machine, versions, commit and images that results come from."""
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": {"torch": torch.__version__},
        "cuda": torch.version.cuda,
        "device": str(device),
        "commit": commit(),
        "fingerprints": FINGERPRINTS[dataset],
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = _printed(query)
    return facts


def commit() -> str | None:
    """The commit of this source: as it was packed, or git's, "+changes" if files differ."""
    if COMMIT_FILE.exists():
        return COMMIT_FILE.read_text(encoding="utf-8").strip()
    here = ["git", "-C", str(Path(__file__).parent)]
    if not _printed([*here, "ls-files", Path(__file__).name]):
        return None
    changed = _printed([*here, "status", "--porcelain", "--untracked-files=no", "--", "."])
    head = _printed([*here, "rev-parse", "HEAD"])
    return f"{head}+changes" if changed else head


def _printed(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
