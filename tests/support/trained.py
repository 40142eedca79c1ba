"""The tiny experiment, trained once for all tests that need a trained run."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.support.shell import Shell

OUTPUT = "output.json"


@dataclass(frozen=True)
class Trained:
    """
    The folder in which `run` has trained the tiny experiment, and its output. Tests use copies and
    must not write to the folder.
    """

    folder: Path
    data_root: Path
    out: str
    err: str

    def copy(self, folder):
        """
        Return a shell in a copy of the folder.
        """
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Shell(folder, self.data_root)


def train_once(folder, data_root):
    """
    Train the experiment in the folder, unless another process of these tests has done so.
    """
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / OUTPUT).exists():
            done = Shell(folder, data_root).process("run", "experiments.yaml", "--profile", "demo")
            assert done.returncode == 0, done.stderr
            (folder / OUTPUT).write_text(json.dumps([done.stdout, done.stderr]))
        return Trained(folder, data_root, *json.loads((folder / OUTPUT).read_text()))
