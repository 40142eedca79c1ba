"""
Results that an earlier version wrote are read, continued and reported as they were.

tests/fixtures/earlier has a store, its report, a bundle of it, and the folder of a run as
`python -m aol` left it after three epochs.
"""

import json
import shutil

import pytest
import torch

from aol.config import from_dict
from aol.training.records import Outcome
from aol.training.run_folder import RunFolder
from orchestrator.analysis.report import make_report
from orchestrator.reporting.render import render
from orchestrator.sharing.merge import ingest_run
from orchestrator.sharing.run_folder import find_run_folders, read_run_folder
from orchestrator.sharing.verify import verify_bundle
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store
from tests.support.shell import PROJECT

EARLIER = PROJECT / "tests" / "fixtures" / "earlier"
TIMED = {"images_per_s", "seconds"}  # the metrics that depend on the machine's speed


@pytest.fixture(scope="module")
def experiment():
    return SpecFile(EARLIER / "experiments.yaml").experiment("demo")


@pytest.fixture
def earlier_store(tmp_path):
    """
    Return a copy, because opening a store may migrate it.
    """
    opened = Store(shutil.copy(EARLIER / "store.db", tmp_path / "earlier.db"))
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path):
    (found,) = find_run_folders(EARLIER / "run_folders")
    return shutil.copytree(found, tmp_path / found.name)


def test_the_store_gives_the_same_report(experiment, earlier_store):
    report = make_report(experiment, earlier_store)

    assert render(report, "md").encode() == (EARLIER / "tables.md").read_bytes()
    written = json.loads((EARLIER / "tables.json").read_text(encoding="utf-8"))
    found = json.loads(render(report, "json"))
    assert_equal(found, written)


def assert_equal(found, expected):
    """
    Equal up to the last digits of numbers, which other libraries round differently. There may be
    more fields by now.
    """
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys()
        for name, value in expected.items():
            assert_equal(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    else:
        assert found == expected


def test_the_bundle_agrees_with_itself():
    found = verify_bundle(EARLIER / "bundle.zip")

    assert found.discrepancies == ()
    assert [(table.measured, table.confirmed) for table in found.tables] == [(4, 4)]


def test_run_keys_and_digests_are_those_of_the_earlier_version(experiment, earlier_store, folder):
    keys = {run.key for run in experiment.replicates([0, 1]).runs}
    stored = earlier_store.runs()

    assert {run.key for run in stored} == keys - {"20-s1020-8a71daa6"}
    assert {run.key: from_dict(dict(run.config)).digest() for run in stored} == {
        run.key: run.key.rsplit("-", 1)[1] for run in stored
    }
    assert folder.name in keys


def test_the_run_folder_is_ingested_with_its_metrics(store, folder):
    assert ingest_run(read_run_folder(folder), store)

    (run,) = store.runs()
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    written = {line["epoch"]: line["values"] for line in map(json.loads, lines)}
    assert (run.key, run.status, run.epoch) == (folder.name, Status.DONE, 3)
    assert store.metrics(run.key) == written
    assert store.margins(run.key) == (folder / "margins.f32").read_bytes()
    assert run.certificate == json.loads((folder / "end.json").read_text())["certificate"]


@pytest.mark.usefixtures("one_thread")
def test_the_run_folder_is_continued_with_the_same_metrics(folder, data_root):
    """
    Without its end and its last checkpoint, the third epoch is trained again.
    """
    for name in ("end.json", "margins.f32", "state-3.pt"):
        (folder / name).unlink()
    files, logged = RunFolder(folder), []
    before = files.epochs()
    outcome = files.train(
        files.run(),
        data_root=data_root,
        device=torch.device("cpu"),
        must_stop=lambda seconds: False,
        log=logged.append,
    )

    assert outcome is Outcome.DONE
    assert logged[0] == "run 0: continues after epoch 2"
    *kept, again = files.epochs()
    assert kept == [*before[:2]]
    assert {name: value for name, value in again.values.items() if name not in TIMED} == {
        name: pytest.approx(value, abs=1e-4)
        for name, value in before[2].values.items()
        if name not in TIMED
    }
