"""The tiny experiment, trained once for all tests that only need something trained."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from tests.support.shell import Shell

OUTPUT = "output.json"


@dataclass(frozen=True)
class Trained:
    """
    The folder in which `run` has trained the tiny experiment, and what it printed. Nobody writes
    to the folder: tests work on copies.
    """

    folder: Path
    data_root: Path
    out: str
    err: str

    def copy(self, folder):
        """
        A shell in a copy that has checkpoints of its own.
        """
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        with closing(sqlite3.connect(folder / "results" / "store.db")) as database, database:
            database.execute(
                "UPDATE runs SET checkpoints = replace(checkpoints, ?, ?)",
                (f"{self.folder}/", f"{folder}/"),
            )
        return Shell(folder, self.data_root)


def train_once(folder, data_root):
    """
    Train it there, unless another process of these tests has or does.
    """
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / OUTPUT).exists():
            done = Shell(folder, data_root).process("run", "experiments.yaml", "--profile", "demo")
            assert done.returncode == 0, done.stderr
            (folder / OUTPUT).write_text(json.dumps([done.stdout, done.stderr]))
        return Trained(folder, data_root, *json.loads((folder / OUTPUT).read_text()))
