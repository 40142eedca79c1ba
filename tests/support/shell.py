"""Run the command line in a separate folder, in this process or in a separate one."""

import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from orchestrator.__main__ import main

PROJECT = Path(__file__).parents[2]
TINY = """
name: tiny
source: "the paper"
default_profile: {gpu: demo, cpu: demo}
defaults:
  resources: {cpus: 1}  # a second thread waits for the first on a busy machine
  epochs: 3
  batch_size: 50
  data: {name: digits, augment: false, train_limit: 150, test_limit: 100}
  loss: {offset: √2, temperature: 1/4}
runs:
  - {id: 0, name: AOL-Small, seed: 0, model: {kind: patchwise, size: 16, width: 0.125}}
  - {id: 11, name: AOL-Conv, seed: 11, model: {kind: conv, size: 16, width: 0.125}}
profiles:
  paper: {changes: [{set: {epochs: 4}}]}
  demo: {note: "demo: not comparable", checkpoint_seconds: 0.2}
columns:
  - {title: Std Acc, metric: accuracy}
  - {title: CRA 36/255, metric: cra_36}
tables:
  - id: only
    title: The only table
    rows:
      - {label: AOL-Small, run: 0, published: [70.3, 62.9]}
      - {label: AOL-Conv, run: 11, published: [68.5, 60.2]}
"""
UNREACHABLE_MLFLOW = {
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
}


class Shell:
    """A folder with an experiments.yaml, in which commands of the program can be run."""

    def __init__(self, folder, data_root, yaml=TINY):
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "experiments.yaml").write_text(yaml, encoding="utf-8")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "TUNE_", "COV_", "TRITON_"))
        } | {"AOL_DATA": str(data_root), "COLUMNS": "200", "PYTHONPATH": str(PROJECT)}

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments):
        """
        Run a command that starts no Ray in this process, which has imported everything already.
        """
        arguments = [*map(str, arguments)]
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        code = 0
        with (
            _as_a_process(self.folder, self.environment, arguments),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as exit_:
                code = exit_.code or 0
            except Exception:
                traceback.print_exc()
                code = 1
        out, err = (stream.buffer.getvalue().decode() for stream in (out, err))
        return subprocess.CompletedProcess(arguments, code, out, err)

    def process(self, *arguments, timeout=300):
        """
        Run a command to its end in a separate process, as training needs.
        """
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@contextmanager
def _as_a_process(folder, environment, arguments):
    """
    Set the environment, the folder and the arguments of a process. Afterwards restore them, and
    close the stores that the end of a process would close.
    """
    from orchestrator.store import Store

    before = dict(os.environ), Path.cwd(), sys.argv
    opened, initialize = [], Store.__init__
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["orchestrator", *arguments]

    def track_store(store, *given, **options):
        initialize(store, *given, **options)
        opened.append(store)

    Store.__init__ = track_store
    try:
        yield
    finally:
        Store.__init__ = initialize
        for store in opened:
            store.close()
        os.environ.clear()
        os.environ.update(before[0])
        os.chdir(before[1])
        sys.argv = before[2]


def wait_for(process, pattern, timeout=120):
    """
    Read the standard error of a running program until a line matches.
    """
    os.set_blocking(process.stderr.fileno(), True)
    seen = []
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        line = process.stderr.readline()
        seen.append(line)
        if re.search(pattern, line):
            return "".join(seen)
        if not line and process.poll() is not None:
            break
    raise AssertionError(f"never saw {pattern!r} in:\n{''.join(seen)}")


def workers_of(process):
    """
    Return the process IDs of the Ray workers that train for a driver.
    """
    import psutil

    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any("ImplicitFunc" in part for part in child.cmdline()):
                found.append(child.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def stop(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def epochs_of(folder):
    """
    Return the names of the metrics by run key and epoch.
    """
    database = sqlite3.connect(folder / "results" / "store.db")
    rows = database.execute("SELECT key, epoch, name FROM metrics").fetchall()
    database.close()
    found = {}
    for key, epoch, name in rows:
        found.setdefault(key, {}).setdefault(epoch, []).append(name)
    return found


def statuses_of(folder):
    database = sqlite3.connect(folder / "results" / "store.db")
    rows = database.execute("SELECT run_id, status FROM runs ORDER BY run_id").fetchall()
    database.close()
    return dict(rows)
