"""Folders that are read-only or small even for root."""

import os
import subprocess
from contextlib import contextmanager

import pytest


def _mount(*arguments):
    command = ["mount", *map(str, arguments)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")


@contextmanager
def _unmounted_at_the_end(folder):
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@contextmanager
def read_only(folder):
    """
    Make an existing folder read-only inside the block.
    """
    _mount("--bind", folder, folder)
    with _unmounted_at_the_end(folder):
        _mount("-o", "remount,ro,bind", folder)
        yield folder


@contextmanager
def small_disk(folder, size):
    """
    Mount an empty file system of this size, such as `512k`, inside the block.
    """
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    with _unmounted_at_the_end(folder):
        yield folder
