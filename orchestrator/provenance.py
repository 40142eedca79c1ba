"""Where results come from: code version, package versions, data."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aol.config import FINGERPRINTS

CODE = (":(top)", ":(top,exclude)results")  # generated tables change no result
PACKAGES = ("torch", "torchvision", "numpy", "ray", "mlflow", "sqlalchemy", "pandas")


@dataclass(frozen=True)
class Provenance:
    """The origin of one run's results, beside its settings."""

    git_commit: str | None
    packages: Mapping[str, str]
    data_fingerprint: str


def provenance(dataset: str) -> Provenance:
    """The origin of what is trained now on `dataset`."""
    parts = FINGERPRINTS[dataset]
    return Provenance(
        git_commit=git_commit(),
        packages=package_versions(),
        data_fingerprint=f"{parts['train']}-{parts['test']}",
    )


def git_commit() -> str | None:
    """The commit of this program's checkout, with "+changes" if files differ; None outside git."""
    folder = Path(__file__).parent
    try:
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)  # not just around us
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def package_versions() -> dict[str, str]:
    """The installed versions of the packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, timeout=10
    )
    return done.stdout.strip()
