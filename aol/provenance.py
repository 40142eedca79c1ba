"""The origin of results: the commit of the source and its changes, the machine, versions."""

import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aol.catalog import DATASETS

if TYPE_CHECKING:
    import torch

PACKED = Path(__file__).parent / "checkout.json"  # in source packed without its git history
CODE = (":(top)", ":(top,exclude)results")  # generated tables change no result
PACKAGES = (":(top)aol", ":(top)orchestrator")  # new files count as code here, committed or not
LONGEST_DIFF = 1_000_000  # characters
GIT_TIMEOUT_S = 60.0  # a network file system may take long to read every file
NO_REPOSITORY = b"not a git repository"
UNKNOWN = "unknown"  # the commit of a checkout that git cannot read, or not in time
UNKNOWN_COMMIT = f"the commit is unknown: git failed, or took longer than {GIT_TIMEOUT_S:.0f} s"
LIBRARIES = ("torch", "triton", "torchvision", "numpy")  # that can change a result


@dataclass(frozen=True)
class Checkout:
    """A commit, followed by "+changes" if files differ from it, and the differences as a patch.

    The commit is None outside git, and `UNKNOWN` if git cannot read the checkout. A patch of more
    than `LONGEST_DIFF` characters is left out.
    """

    commit: str | None = None
    diff: str | None = None

    def as_json(self) -> str:
        """Return the content of `PACKED` in a packed source."""
        return json.dumps(asdict(self))


def checkout() -> Checkout:
    """Return the checkout of this program, or the one it was packed from; empty outside git."""
    if PACKED.exists():
        return Checkout(**json.loads(PACKED.read_text(encoding="utf-8")))
    here = Path(__file__)
    try:
        # Without this file, git found the repository of an enclosing folder
        if not _git(here.parent, "ls-files", here.name):
            return Checkout()
        commit = _git(here.parent, "rev-parse", "HEAD").strip()
        diff = _git(here.parent, "diff", "--binary", "HEAD", "--", *CODE) + _new_files(here.parent)
    except FileNotFoundError:  # git is not installed
        return Checkout()
    except (OSError, subprocess.TimeoutExpired):
        return Checkout(UNKNOWN)
    except subprocess.CalledProcessError as error:
        outside = NO_REPOSITORY in error.stderr
        return Checkout() if outside else Checkout(UNKNOWN)
    if not diff:
        return Checkout(commit)
    return Checkout(f"{commit}+changes", diff if len(diff) <= LONGEST_DIFF else None)


def _new_files(folder: Path) -> str:
    """Return a patch that adds the untracked files of the packages."""
    top = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    others = ("ls-files", "--others", "--exclude-standard", "-z", "--", *PACKAGES)
    names = [name for name in _git(top, *others).split("\0") if name]
    against_nothing = ("diff", "--binary", "--no-index", "--", "/dev/null")
    return "".join(_git(top, *against_nothing, name, fails_with=1) for name in names)


def _git(folder: Path, *arguments: str, fails_with: int = 0) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env=os.environ | {"LC_ALL": "C"},
        check=False,
        capture_output=True,
        timeout=GIT_TIMEOUT_S,
    )
    if done.returncode not in (0, fails_with):  # `diff --no-index` exits with 1 for a difference
        raise subprocess.CalledProcessError(done.returncode, done.args, stderr=done.stderr)
    return done.stdout.decode("utf-8", "replace")  # as text it would lose its carriage returns


def environment(
    device: "torch.device",
    dataset: str,
    *,
    libraries: Iterable[str] = LIBRARIES,
    source: Checkout | None = None,
) -> dict[str, Any]:
    """Return machine, versions, commit (with `diff`, a patch) and the images' fingerprints.

    Pass `source` if the checkout is known already.
    """
    import torch

    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": versions(libraries) | {"torch": torch.__version__},
        "cuda": torch.version.cuda,
        "device": str(device),
        **asdict(source or checkout()),
        "fingerprints": DATASETS[dataset].fingerprints,
    }
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
        facts["cudnn"] = torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = _output_of(query)
    return facts


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of these packages, without those that are not installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _output_of(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
