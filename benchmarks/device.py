"""Resetting a GPU between two measurements, after a failed one too."""

import gc
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch


def own_stream() -> AbstractContextManager[Any]:
    """Restore the current stream after the block; a failed graph recording does not."""
    return torch.cuda.stream(torch.cuda.current_stream() if torch.cuda.is_available() else None)


def free(device: torch.device) -> None:
    """Free unused memory; a recorded graph and its step refer to each other."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # of torch 2.11 after a failed recording
            torch.cuda.empty_cache()
