"""Environment variables that Ray and MLflow read when they are imported."""

import os
from pathlib import Path

LOCAL = "local"  # the address that starts a cluster on this machine

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would rebuild the environment
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # Tune's state is never read
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # so that the longest run starts first
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # by default an unreachable server takes four minutes
}
LOCAL_CLUSTER_DEFAULTS = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback interface only
}


def prepare() -> None:
    """Set the variables that every command needs, unless the user has set them."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if data_root := os.environ.get("AOL_DATA"):  # workers have another working directory
        os.environ["AOL_DATA"] = str(Path(data_root).expanduser().absolute())


def prepare_ray(address: str) -> None:
    """Set the variables of Ray for the cluster at `address`."""
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # see `orchestrator.signals`
    if address != LOCAL:
        return
    for name, value in LOCAL_CLUSTER_DEFAULTS.items():
        os.environ.setdefault(name, value)
    root = str(Path(__file__).parent.parent)
    paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
