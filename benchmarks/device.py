"""A GPU between two measurements, the first of which may have failed."""

import gc
from contextlib import AbstractContextManager, suppress
from typing import Any

import torch


def own_stream() -> AbstractContextManager[Any]:
    """Whatever happens in the block, the stream is the same after it.

    A recording that fails leaves its own as the current one.
    """
    return torch.cuda.stream(torch.cuda.current_stream() if torch.cuda.is_available() else None)


def free(device: torch.device) -> None:
    """Give back the memory that nothing needs; a recording and its step hold each other."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # after a recording that failed torch 2.11 refuses
            torch.cuda.empty_cache()
