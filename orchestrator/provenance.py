"""The origin of results: code version, package versions, data."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import Any

from aol.catalog import DATASETS
from aol.provenance import checkout, versions

PROGRAM = "aol-orchestrator"
PACKAGES = ("torch", "triton", "torchvision", "numpy", "ray", "mlflow", "sqlalchemy", "pandas")


@dataclass(frozen=True)
class Provenance:
    """The origin of results beside the run's settings; the diff is a patch of the commit."""

    git_commit: str | None
    packages: Mapping[str, str]
    data_fingerprint: str
    git_diff: str | None = None
    gpu_driver: str | None = None


def provenance(dataset: str) -> Provenance:
    """Return the origin of results that are trained now on `dataset` in this environment."""
    source = checkout()
    return Provenance(
        git_commit=source.commit,
        packages=package_versions(),
        data_fingerprint=DATASETS[dataset].fingerprint,
        git_diff=source.diff,
    )


def reported_provenance(facts: Mapping[str, Any]) -> Provenance:
    """Return the origin that a worker reports as `aol.provenance.environment`."""
    fingerprints = facts["fingerprints"]
    return Provenance(
        git_commit=facts["commit"],
        packages=facts["packages"],
        data_fingerprint=f"{fingerprints['train']}-{fingerprints['test']}",
        git_diff=facts["diff"],
        gpu_driver=facts.get("driver"),
    )


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that can change a result."""
    return versions(PACKAGES)


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
