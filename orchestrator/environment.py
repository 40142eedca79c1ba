"""What the libraries read from the environment, set before they are imported."""

import os
import signal
from pathlib import Path

LOCAL = "local"  # the address of a cluster of one's own
SIGTERM_EXIT = 128 + signal.SIGTERM

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would rebuild the environment
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # keeps the longest run first
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # else a server that is down takes four minutes
}
OWN_CLUSTER = {
    "RAY_AUTH_MODE": "disabled",  # no token in the home directory
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: listen on the loopback only
}


def prepare() -> None:
    """Set the variables of every command, unless the user set them."""
    for name, value in ALWAYS.items():
        os.environ.setdefault(name, value)
    if root := os.environ.get("AOL_DATA"):  # workers have another current folder
        os.environ["AOL_DATA"] = str(Path(root).expanduser().absolute())


def prepare_ray(address: str) -> None:
    """Set what Ray needs for a cluster of one's own or for the one at `address`."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours saves first
    if address != LOCAL:
        return
    for name, value in OWN_CLUSTER.items():
        os.environ.setdefault(name, value)
    project = str(Path(__file__).parent.parent)
    paths = [project, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
