"""
Damaged and made-up input is accepted or refused by an error of ours, never by a traceback.

AOL_FUZZ_CASES sets the number of cases of each test.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from aol.errors import AOLError
from orchestrator.analysis.report import make_report
from orchestrator.analysis.status import run_statuses
from orchestrator.reporting.render import render
from orchestrator.sharing.archive import MANIFEST, Entry
from orchestrator.sharing.bundle import open_results
from orchestrator.sharing.merge import ingest_folders, merge_stores
from orchestrator.sharing.run_folder import find_run_folders
from orchestrator.sharing.verify import verify_bundle
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Store, close_as_single_file
from tests.support.fuzz import changed_bytes, changed_json, changed_store, changed_tree
from tests.support.shell import PROJECT
from tests.support.specs import GOOD

pytestmark = pytest.mark.slow
CASES = int(os.environ.get("AOL_FUZZ_CASES", "500"))
FUZZ = settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
EARLIER = PROJECT / "tests" / "fixtures" / "earlier"
MORE = """
data_root: data
default_profile: {gpu: quick, cpu: quick}
measurements: [layer norm]
reproduction: {margin: 0.5, decimals: 1, prior: {sd: 0.3, freedom: 4}}
prices: {gpu_hour: 2, currency: USD, tflops: 30}
claims:
  - {id: a, text: A, highest: {run: 0, runs: "0-1", column: Acc}}
  - {id: b, text: B, at_most: {runs: all, column: CRA, value: 3}}
  - {id: c, text: C, above: {orders: [[0, 1]], columns: [Acc]}}
  - {id: d, text: D, cheaper: {method: x, than: [y], costs: costs.json}}
"""
SPEC = YAML(typ="safe", pure=True).load(GOOD + MORE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def ours(folder):
    with closing(Store(folder / "ours.db")) as store:
        yield store


def accept(action):
    """
    Check that the action succeeds, or fails with one of our errors, in lines for a terminal.
    """
    problem = None
    try:
        action()
    except AOLError as error:
        problem = error
    if problem:
        assert problem.exit_code in (1, 2, 4)
        assert 0 < max(map(len, str(problem).splitlines())) < 10_000
        assert str(problem).encode()


def read_everything(store, experiment):
    """
    Read a store as the commands do.
    """
    for run in store.runs():
        run.alive  # noqa: B018
        store.metrics(run.key), store.recorded_at(run.key), store.attempts(run.key)
        store.margins(run.key)
    store.frame(), store.newest_profile(), store.keys_by_priority(9)
    store.query("SELECT * FROM v_final"), store.query("SELECT * FROM v_cells")
    run_statuses(store, None)
    render(make_report(experiment, store), "json")


def forget(store):
    for key in store.query("SELECT key FROM runs")[1]:
        store.delete_run(*key)


spec_texts = st.one_of(
    changed_tree(SPEC).map(json.dumps).map(str.encode),
    changed_bytes((GOOD + MORE).encode()),
)


@FUZZ
@given(content=spec_texts)
def test_a_changed_yaml_file_is_read_or_refused(folder, content):
    file = folder / "spec.yaml"
    file.write_bytes(content)

    def load():
        spec = SpecFile(file)
        for profile in spec.profiles:
            spec.experiment(profile)

    accept(load)


@FUZZ
@given(
    name=st.sampled_from(["epochs", "data.name", "optimizer.drops", "model", "x"]),
    text=st.text() | changed_tree([1, {"a": 2}]).map(json.dumps),
)
def test_a_changed_setting_is_read_or_refused(spec_once, name, text):
    accept(lambda: spec_once.experiment("quick", [f"{name}={text}"]))


@pytest.fixture(scope="module")
def spec_once(folder):
    file = folder / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    return SpecFile(file)


@pytest.fixture(scope="module")
def experiment():
    return SpecFile(EARLIER / "experiments.yaml").experiment("demo")


@cache
def stored():
    """
    Return a store of the newest schema in a single file.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(shutil.copy(EARLIER / "store.db", folder))
        close_as_single_file(Store(file))
        return file.read_bytes()


changed_stores = st.deferred(lambda: changed_store(stored()))


@FUZZ
@given(content=changed_stores)
def test_a_changed_store_is_read_or_refused(folder, experiment, content):
    file = folder / "theirs.db"
    remove_database(file)
    file.write_bytes(content)

    def read():
        with closing(Store(file)) as store:
            read_everything(store, experiment)

    accept(read)


@FUZZ
@given(content=changed_stores)
def test_a_changed_store_is_merged_or_refused(folder, ours, experiment, content):
    file = folder / "theirs.db"
    remove_database(file)
    file.write_bytes(content)

    def merge():
        with open_results(str(file)) as theirs:
            merge_stores(theirs, ours)

    accept(merge)
    read_everything(ours, experiment)
    forget(ours)


def remove_database(file):
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def changed_lines(content):
    first, *rest = content.splitlines()
    return changed_json(first).map(lambda line: b"\n".join([line, *rest])) | changed_bytes(content)


(SOURCE,) = find_run_folders(EARLIER / "run_folders")
FILES = {
    "run.json": changed_json,
    "attempts.jsonl": changed_lines,
    "metrics.jsonl": changed_lines,
    "margins.f32": changed_bytes,
    "end.json": changed_json,
}
changed_files = st.one_of(
    *(
        st.tuples(st.just(name), change((SOURCE / name).read_bytes()))
        for name, change in FILES.items()
    )
)


@FUZZ
@given(change=changed_files)
def test_a_changed_run_folder_is_ingested_or_refused(folder, ours, experiment, change):
    target = folder / "out" / SOURCE.name
    target.mkdir(parents=True, exist_ok=True)
    changed, content = change
    for name in FILES:
        (target / name).write_bytes(content if name == changed else (SOURCE / name).read_bytes())

    accept(lambda: ingest_folders(find_run_folders(folder / "out"), ours))
    read_everything(ours, experiment)
    forget(ours)


BUNDLE = EARLIER / "bundle.zip"
with zipfile.ZipFile(BUNDLE) as archive:
    MEMBERS = {name: archive.read(name) for name in archive.namelist()}
CHANGED_MEMBERS = {"json": changed_json, "db": changed_store}


def changed_member(name):
    """
    Return a strategy of the name of a file in the bundle with its changed content.
    """
    change = CHANGED_MEMBERS.get(name.rpartition(".")[2], changed_bytes)
    return st.tuples(st.just(name), change(MEMBERS[name]))


changed_bundles = st.one_of(
    st.tuples(st.none(), changed_bytes(BUNDLE.read_bytes())),
    *(changed_member(name) for name in MEMBERS if not name.endswith((".svg", ".lock"))),
)


@FUZZ
@given(change=changed_bundles)
def test_a_changed_bundle_is_verified_or_refused(folder, change):
    file, (name, content) = folder / "changed.zip", change
    if name is None:
        file.write_bytes(content)
    else:
        write_bundle(file, MEMBERS | {name: content}, name)

    accept(lambda: verify_bundle(file))


def write_bundle(file, files, name):
    """
    Write a bundle with a changed file and a manifest that fits, or with a changed manifest.
    """
    if name != MANIFEST:
        manifest = json.loads(files[MANIFEST])
        entry = Entry(sha256=hashlib.sha256(files[name]).hexdigest(), size=len(files[name]))
        manifest["files"][name] = entry.model_dump()
        files = files | {MANIFEST: json.dumps(manifest).encode()}
    with zipfile.ZipFile(file, "w") as archive:
        for one, inside in files.items():
            archive.writestr(one, inside)
