"""The origin of results: code version, package versions, data."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version

from aol.catalog import DATASETS
from aol.provenance import checkout

PROGRAM = "aol-orchestrator"
PACKAGES = ("torch", "triton", "torchvision", "numpy", "ray", "mlflow", "sqlalchemy", "pandas")


@dataclass(frozen=True)
class Provenance:
    """The origin of one run's results beside its settings; the diff is a patch of the commit."""

    git_commit: str | None
    packages: Mapping[str, str]
    data_fingerprint: str
    git_diff: str | None = None


def provenance(dataset: str) -> Provenance:
    """Return the origin of results that are trained now on `dataset`."""
    source = checkout()
    return Provenance(
        git_commit=source.commit,
        packages=package_versions(),
        data_fingerprint=DATASETS[dataset].fingerprint,
        git_diff=source.diff,
    )


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def installed() -> dict[str, str]:
    """Return every installed package with its version, by name."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # the rest of a broken installation has none
            found.setdefault(name, distribution.version)  # the first one is imported
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def program_version() -> str:
    """Return the version of this program, "unknown" if it is not installed."""
    try:
        return version(PROGRAM)
    except PackageNotFoundError:
        return "unknown"
