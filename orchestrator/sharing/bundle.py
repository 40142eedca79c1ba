"""Writing the results of a profile as one file that can be verified anywhere."""

import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from aol.provenance import checkout
from orchestrator.analysis.report import make_report
from orchestrator.analysis.tables import runs_of
from orchestrator.errors import BundleError, OutputError
from orchestrator.formatting import to_json
from orchestrator.provenance import installed, program_version
from orchestrator.reporting.html import write_page
from orchestrator.reporting.render import render, write_text
from orchestrator.sharing.archive import (
    SUFFIX,
    Manifest,
    list_entries,
    make_manifest,
    pack_bundle,
    unpack_bundle,
)
from orchestrator.spec.claims import Cheaper
from orchestrator.spec.experiment import Experiment
from orchestrator.store import Store, StoredRun, close_as_single_file, copy_run, snapshot
from orchestrator.store.cells import store_published_cells

YAML, LOCK, STORE = "experiments.yaml", "requirements.lock", "store.db"
MARGINS, REPORT, ENVIRONMENT = "margins", "report", "environment.json"
PROJECT = Path(__file__).parents[2]


@contextmanager
def open_results(location: str) -> Iterator[Store]:
    """Open a store, or the one in a bundle, as it is at this moment; nothing is written to it.

    Raises: BundleError if a bundle contradicts its manifest; OutputError, StoreError.
    """
    if not location.endswith(SUFFIX):
        with snapshot(location) as store:
            yield store
        return
    with unpack_bundle(Path(location).expanduser()) as found:
        if found.problems:
            raise BundleError(f"{location}: {found.problems[0]}; `verify` lists every problem")
        with snapshot(found.folder / STORE) as store:
            yield store


def write_bundle(
    experiment: Experiment, store: Store, target: Path, *, at: str, force: bool = False
) -> Manifest:
    """Write the bundle of a profile atomically; the time `at` is stored in its manifest.

    Raises: BundleError if `target` exists or the profile has no runs; OutputError, StoreError.
    """
    if target.exists() and not force:
        raise BundleError(f"{target}: exists already; pass --force to replace it")
    try:
        with (
            TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder,
            snapshot(store.url) as source,
        ):
            contents, file = Path(folder) / "contents", Path(folder) / "bundle.zip"
            contents.mkdir()
            _write_contents(contents, experiment, source)
            manifest = make_manifest(
                target,
                experiment=experiment.name,
                profile=experiment.base,
                settings=experiment.overrides,
                program=program_version(),
                commit=checkout().commit,
                created_at=at,
                files=list_entries(contents),
            )
            pack_bundle(contents, manifest, file)
            file.replace(target)
    except (OSError, OutputError) as error:
        cause = error.__cause__ if isinstance(error, OutputError) else error
        reason = getattr(cause, "strerror", None) or cause
        raise OutputError(
            f"{target}: cannot be written: {reason}; choose a writable folder with enough space"
        ) from error
    return manifest


def _write_contents(folder: Path, experiment: Experiment, source: Store) -> None:
    """Write every file except the manifest.

    Raises: BundleError, OSError, OutputError, StoreError.
    """
    runs = [run for found in runs_of(experiment, source).values() for run in found]
    if not runs:
        raise BundleError(
            f"the store has no run of the profile `{experiment.profile}`; `status` lists the others"
        )
    for file in _cost_files(experiment):
        copied_file = folder / file
        copied_file.parent.mkdir(parents=True, exist_ok=True)
        copied_file.write_bytes((experiment.path.parent / file).read_bytes())
    with closing(Store(folder / STORE)) as copied:
        for run in runs:
            copy_run(source, copied, run.key)
        store_published_cells(experiment, copied)
        _write_margins(folder / MARGINS, runs, copied)
        _write_report(folder / REPORT, experiment, copied)
        close_as_single_file(copied)
    (folder / YAML).write_bytes(experiment.path.read_bytes())
    for lock in (experiment.path.parent / LOCK, PROJECT / LOCK):
        if lock.is_file():
            (folder / LOCK).write_bytes(lock.read_bytes())
            break
    write_text(folder / ENVIRONMENT, _environment())


def _cost_files(experiment: Experiment) -> set[str]:
    """Return the files of benchmarks that claims refer to and that exist, as they name them."""
    relations = [claim.relation for claim in experiment.claims]
    files = {relation.costs for relation in relations if isinstance(relation, Cheaper)}
    return {file for file in files if (experiment.path.parent / file).is_file()}


def _write_margins(folder: Path, runs: Sequence[StoredRun], store: Store) -> None:
    folder.mkdir()
    for run in runs:
        if margins := store.margins(run.key):
            (folder / f"{run.key}.f32").write_bytes(margins)


def _write_report(folder: Path, experiment: Experiment, store: Store) -> None:
    report = make_report(experiment, store)
    write_page(report, store, folder)
    write_text(folder / "tables.md", render(report, "md"))
    write_text(folder / "tables.json", render(report, "json"))


def _environment() -> str:
    """Describe the environment of this program as JSON."""
    source = checkout()
    facts = {
        "python": sys.version,
        "platform": platform.platform(),
        "commit": source.commit,
        "diff": source.diff,
        "packages": installed(),
    }
    return to_json(facts)
