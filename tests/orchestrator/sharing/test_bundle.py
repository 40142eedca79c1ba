import hashlib
import json
import os
import re
import sqlite3
import struct
import subprocess
import tempfile
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aol.catalog import DATASETS
from orchestrator.analysis.report import make_report
from orchestrator.errors import BundleError, OutputError
from orchestrator.reporting.html import render_page
from orchestrator.reporting.render import render
from orchestrator.sharing import archive
from orchestrator.sharing.bundle import write_bundle
from orchestrator.sharing.verify import verify_bundle
from orchestrator.spec.loader import SpecFile
from orchestrator.store import Status, Store, copy_run
from tests.support.figures import sketched
from tests.support.reports import finish
from tests.support.shell import TINY, Shell
from tests.support.stores import ORIGIN

AT = "2026-01-01T00:00:00+00:00"
DIGITS = replace(ORIGIN, data_fingerprint=DATASETS["digits"].fingerprint)


def fill(store, experiment):
    """
    Run 0 done with two seeds, run 11 in training, and a run of another profile.
    """
    first, second = experiment.runs
    finish(store, first, 0.0, DIGITS)
    finish(store, experiment.replicates([1]).runs[0], 0.1, DIGITS)
    store.queue([second])
    store.start(second, DIGITS)
    store.record(second.key, 1, {"accuracy": 0.5})
    other = SpecFile(experiment.path).experiment("paper").runs[0]
    finish(store, other, 0.2, DIGITS)


@pytest.fixture(scope="module", autouse=True)
def sketched_figures():
    with sketched():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """
    A folder with the YAML file, a lock file and the results of the demo.
    """
    folder = tmp_path_factory.mktemp("home")
    (folder / "experiments.yaml").write_text(TINY, encoding="utf-8")
    (folder / "requirements.lock").write_text("torch==2.13\n", encoding="utf-8")
    store = Store(folder / "results" / "store.db")
    fill(store, SpecFile(folder / "experiments.yaml").experiment("demo"))
    store.close()
    return folder


@pytest.fixture(scope="module")
def experiment(home):
    return SpecFile(home / "experiments.yaml").experiment("demo")


@pytest.fixture
def store(home):
    opened = Store(home / "results" / "store.db")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def made(home, experiment):
    """
    A bundle of the demo.
    """
    opened = Store(home / "results" / "store.db")
    write_bundle(experiment, opened, home / "demo.zip", at=AT)
    opened.close()
    return home / "demo.zip"


def contents(file):
    with zipfile.ZipFile(file) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def write(file, files):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return file


def doctored(made, target, **changes):
    """
    The bundle with other contents of some files and matching hashes; None deletes a file.
    """
    files = contents(made)
    manifest = json.loads(files["manifest.json"])
    for name, content in changes.items():
        if content is None:
            del files[name], manifest["files"][name]
        else:
            files[name] = content
            digest = hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"sha256": digest, "size": len(content)}
    files["manifest.json"] = json.dumps(manifest).encode()
    return write(target, files)


def edited(made, folder, sql, *values):
    """
    The bundle's store after a SQL statement.
    """
    path = folder / "edited.db"
    path.write_bytes(contents(made)["store.db"])
    with sqlite3.connect(path) as connection:
        assert connection.execute(sql, values).rowcount
    connection.close()
    return path.read_bytes()


# The contents of a bundle


def test_a_bundle_has_every_file_and_its_manifest_lists_them(made, experiment):
    files = contents(made)
    manifest = json.loads(files.pop("manifest.json"))
    seeds = [run.key for run in (experiment.runs[0], experiment.replicates([1]).runs[0])]
    report = {name for name in files if name.startswith("report/figures/")}

    assert set(files) - report == {
        "experiments.yaml",
        "requirements.lock",
        "environment.json",
        "store.db",
        "report/tables.md",
        "report/tables.json",
        "report/report.html",
        *(f"margins/{key}.f32" for key in seeds),
    }
    assert {Path(name).suffix for name in report} == {".png", ".svg"}
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in files.items()
    }
    assert (manifest["format"], manifest["version"]) == ("aol-bundle", 1)
    assert (manifest["experiment"], manifest["profile"]) == ("tiny", "demo")
    assert (manifest["settings"], manifest["created_at"]) == ([], AT)
    assert files["requirements.lock"] == b"torch==2.13\n"
    assert files["experiments.yaml"] == TINY.encode()


def test_the_bundled_store_has_only_the_profiles_runs_and_the_report_is_theirs(
    made, experiment, store, tmp_path
):
    files = contents(made)
    (tmp_path / "store.db").write_bytes(files["store.db"])
    copied = Store(tmp_path / "store.db")
    found = copied.runs()
    _, cells = copied.query("SELECT count(*) FROM v_cells")
    report = make_report(experiment, copied)

    theirs = [run for run in store.runs() if run.profile == "demo"]
    assert found == [replace(run, alive=False) for run in theirs]
    assert [run.status for run in found] == [Status.DONE, Status.DONE, Status.RUNNING]
    assert cells == [(4,)]
    assert files["report/tables.md"].decode() == render(report, "md")
    assert files["report/tables.json"].decode() == render(report, "json")
    headings = render_page(report, copied, []).partition("<body>")[0]
    assert files["report/report.html"].decode().startswith(headings)
    copied.close()


def test_the_environment_lists_the_installed_packages(made):
    found = json.loads(contents(made)["environment.json"])

    assert {"numpy", "SQLAlchemy", "pytest"} <= set(found["packages"])
    assert found["python"].startswith("3.")
    assert {"platform", "commit", "diff"} <= set(found)


def dumped(file, folder):
    """
    A bundle's files with the store as SQL, because the order of its indexes is random. Without
    the files that may change between two bundles, such as the list of installed packages.
    """
    files = contents(file)
    del files["manifest.json"], files["environment.json"]
    (folder / "dumped.db").write_bytes(files["store.db"])
    connection = sqlite3.connect(folder / "dumped.db")
    dump = sorted(connection.iterdump())
    connection.close()
    return files | {"store.db": dump}


def test_equal_results_give_equal_files_in_the_same_order(made, experiment, store, tmp_path):
    write_bundle(experiment, store, tmp_path / "again.zip", at=AT)
    with zipfile.ZipFile(made) as first, zipfile.ZipFile(tmp_path / "again.zip") as second:
        times = {info.date_time for info in first.infolist()}
        names = first.namelist()
        again = second.namelist()

    assert dumped(made, tmp_path) == dumped(tmp_path / "again.zip", tmp_path)
    assert times == {(1980, 1, 1, 0, 0, 0)}
    assert names == again == ["manifest.json", *sorted(names[1:])]


@pytest.mark.slow
def test_a_bundle_has_the_overrides_of_its_profile(home, tmp_path):
    changed = SpecFile(home / "experiments.yaml").experiment("demo", ["batch_size=25"])
    opened = Store(tmp_path / "store.db")
    finish(opened, changed.runs[0], 0.0, DIGITS)
    write_bundle(changed, opened, tmp_path / "custom.zip", at=AT)
    opened.close()
    found = verify_bundle(tmp_path / "custom.zip")

    assert (found.manifest.profile, found.manifest.settings) == ("demo", ("batch_size=25",))
    assert found.discrepancies == ()
    assert found.tables[0].confirmed == 2


def test_a_store_on_a_server_makes_the_same_bundle(made, experiment, store, schema, tmp_path):
    server = Store(schema)
    for run in store.runs():
        copy_run(store, server, run.key)
    write_bundle(experiment, server, tmp_path / "server.zip", at=AT)
    server.close()

    assert dumped(tmp_path / "server.zip", tmp_path) == dumped(made, tmp_path)


# Errors while a bundle is written


def test_an_existing_file_is_replaced_only_with_force(experiment, store, tmp_path):
    file = tmp_path / "demo.zip"
    file.write_text("mine")
    with pytest.raises(BundleError, match=r"demo\.zip: exists already; pass --force to replace it"):
        write_bundle(experiment, store, file, at=AT)
    before = file.read_text()
    write_bundle(experiment, store, file, at=AT, force=True)

    assert before == "mine"
    assert zipfile.is_zipfile(file)


def test_a_bundle_that_could_not_be_unpacked_is_not_written(
    experiment, store, tmp_path, monkeypatch
):
    monkeypatch.setattr(archive, "FILES_LIMIT", 5)
    with pytest.raises(BundleError, match=r"demo\.zip: has \d+ files; 5 are allowed"):
        write_bundle(experiment, store, tmp_path / "demo.zip", at=AT)

    assert list(tmp_path.iterdir()) == []


def test_a_profile_without_runs_cannot_be_bundled(home, tmp_path):
    empty = Store(tmp_path / "store.db")
    file = SpecFile(home / "experiments.yaml")
    with pytest.raises(BundleError, match="the store has no run of the profile `demo`"):
        write_bundle(file.experiment("demo"), empty, tmp_path / "demo.zip", at=AT)
    empty.close()

    assert not list(tmp_path.glob("*.zip")) + list(tmp_path.glob(".demo*"))


def test_a_missing_folder_is_a_one_line_error(experiment, store, tmp_path):
    with pytest.raises(OutputError) as caught:
        write_bundle(experiment, store, tmp_path / "none" / "demo.zip", at=AT)

    assert str(caught.value) == (
        f"{tmp_path / 'none' / 'demo.zip'}: cannot be written: No such file or directory; "
        "choose a writable folder with enough space"
    )


@pytest.fixture
def mounted(tmp_path):
    """
    Mount a tiny file system.
    """
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("needs the right to mount a small file system")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


def test_a_read_only_folder_is_a_one_line_error(experiment, store, mounted):
    folder = mounted("ro")
    with pytest.raises(OutputError, match=r"demo\.zip: cannot be written: Read-only file system"):
        write_bundle(experiment, store, folder / "demo.zip", at=AT)


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.75, 0.9])
def test_a_full_disk_is_a_one_line_error_without_files(made, experiment, store, mounted, share):
    """
    The space ends in the store, in the figures, in the page or in the zip.
    """
    needed = sum(map(len, contents(made).values())) + made.stat().st_size
    folder = mounted(f"size={int(share * needed)}")
    with pytest.raises(Exception, match=r"No space left on device|disk is full") as caught:
        write_bundle(experiment, store, folder / "demo.zip", at=AT)

    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


# Discrepancies


def test_a_good_bundle_has_no_discrepancies(made):
    found = verify_bundle(made)
    (table,) = found.tables

    assert found.discrepancies == ()
    assert found.note == "demo: not comparable"
    assert (table.title, table.cells, table.measured, table.confirmed) == (
        "The only table",
        4,
        2,
        2,
    )
    assert sum(table.verdicts.values()) == 4


def found_in(file):
    return list(verify_bundle(file).discrepancies)


def test_a_flipped_byte_in_the_store_is_found(made, tmp_path):
    files = contents(made)
    content = bytearray(files["store.db"])
    content[-10] ^= 1
    found = found_in(write(tmp_path / "x.zip", files | {"store.db": bytes(content)}))

    assert found[0].startswith("store.db: its SHA-256 is ")


def test_a_byte_flipped_in_the_zip_itself_is_found(made, tmp_path):
    with zipfile.ZipFile(made) as opened:
        info = opened.getinfo("store.db")
    content = bytearray(made.read_bytes())
    content[info.header_offset + len("store.db") + 30 + info.compress_size // 2] ^= 255
    (tmp_path / "x.zip").write_bytes(content)
    found = found_in(tmp_path / "x.zip")

    assert found[0].startswith("store.db: cannot be unpacked: ")
    assert found[1].startswith("there is no store at store.db")


def test_margins_changed_only_in_their_file_are_found(made, tmp_path, experiment):
    key = experiment.runs[0].key
    values = np.frombuffer(contents(made)[f"margins/{key}.f32"], "<f4").copy()
    values[-20:] = -1
    found = found_in(doctored(made, tmp_path / "x.zip", **{f"margins/{key}.f32": values.tobytes()}))

    assert f"margins/{key}.f32: differs from the margins in the store" in found
    assert any(
        line.startswith("only/AOL-Small/CRA 36/255: the margins give 6") for line in found
    ), found


def test_margins_changed_in_file_and_store_contradict_the_metrics(made, tmp_path, experiment):
    """
    All hashes match, so only the derived cells reveal it.
    """
    key = experiment.runs[0].key
    values = np.frombuffer(contents(made)[f"margins/{key}.f32"], "<f4").copy()
    values[values < 0] = 3
    database = edited(
        made, tmp_path, 'UPDATE margins SET "values" = ? WHERE key = ?', values.tobytes(), key
    )
    changes = {f"margins/{key}.f32": values.tobytes(), "store.db": database}
    found = found_in(doctored(made, tmp_path / "x.zip", **changes))

    assert "run 0, seed 0: accuracy 0.7500 is not what the margins give" in found
    for where in ("the store", "report/tables.json"):
        expected = f"only/AOL-Small/Std Acc: the margins give 88.5000, {where} has 76.0000"
        assert expected in found, found


def test_a_metric_changed_in_the_store_is_found(made, tmp_path, experiment):
    sql = "UPDATE metrics SET value = 0.9 WHERE key = ? AND epoch = 3 AND name = 'accuracy'"
    database = edited(made, tmp_path, sql, experiment.runs[0].key)
    found = found_in(doctored(made, tmp_path / "x.zip", **{"store.db": database}))

    assert "run 0, seed 0: accuracy 0.9000 is not what the margins give" in found
    assert any("Std Acc: the margins give 76.0000, the store has 83.5000" in line for line in found)
    assert any("only/AOL-Small/Std Acc: measured is " in line for line in found)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("published", 76.1, "published is 76.1, the results give 70.3"),
        ("measured", 76.1, "measured is 76.1, the results give 76.0"),
        ("verdict", "reproduced", "verdict is 'reproduced', the results give 'differs'"),
        ("seeds", 9, "seeds is 9, the results give 2"),
        ("interval_low", "wide", "interval_low is 'wide', the results give "),
        ("p_differs", None, "p_differs is None, the results give "),
    ],
)
def test_a_number_edited_in_the_report_is_found(made, tmp_path, field, value, expected):
    report = json.loads(contents(made)["report/tables.json"])
    report["cells"][0][field] = value
    changes = {"report/tables.json": json.dumps(report).encode()}
    found = found_in(doctored(made, tmp_path / "x.zip", **changes))

    cell = "report/tables.json: only/AOL-Small/Std Acc: "
    assert any(line.startswith(f"{cell}{expected}") for line in found), found


CLAIMS = """
claims:
  - {id: C1, text: so it is, above: {orders: [[11, 0]], columns: [Std Acc]}}
  - {id: C2, text: sound, at_most: {column: layer norm, value: 1}}
  - {id: C3, text: cheap, cheaper: {method: A, than: [B], costs: benchmarks/costs.json}}
"""


@pytest.fixture(scope="module")
def claimed(tmp_path_factory):
    """
    A bundle of two runs of two seeds, with claims about them and about the file of a benchmark.
    """
    folder = tmp_path_factory.mktemp("claimed")
    (folder / "experiments.yaml").write_text(TINY + CLAIMS, encoding="utf-8")
    (folder / "benchmarks").mkdir()
    costs = {"step_ms": [1.0, 1.1, 1.2, 1.3], "peak_mb": [1.0, 1.0, 1.0]}
    dear = {name: [3 * value for value in values] for name, values in costs.items()}
    record = {"schema": "aol-costs/1", "setting": "", "methods": {"A": costs, "B": dear}}
    (folder / "benchmarks" / "costs.json").write_text(json.dumps(record), encoding="utf-8")
    experiment = SpecFile(folder / "experiments.yaml").experiment("demo")
    with Store(folder / "store.db") as store:
        for number in (0, 1):
            for index, run in enumerate(experiment.replicates([number]).runs):
                finish(store, run, 0.3 * index + 0.01 * number * (1 + index), DIGITS)
        write_bundle(experiment, store, folder / "claimed.zip", at=AT)
    return folder / "claimed.zip"


def test_a_bundle_has_the_files_that_claims_refer_to(claimed):
    assert "benchmarks/costs.json" in contents(claimed)
    assert found_in(claimed) == []


@pytest.mark.parametrize(
    ("claim", "field", "value", "expected"),
    [
        (0, "verdict", "contradicted", "claim C1: verdict is 'contradicted', the results give '"),
        (0, "p", 0.5, "claim C1: p is 0.5, the results give "),
        (0, "steps", [], "claim C1: has 0 steps, the results give 1"),
        (1, "verdict", "undecided", "claim C2: verdict is 'undecided', the results give 'holds'"),
        (2, "seeds", 99, "claim C3: seeds is 99, the results give 4"),
        (2, "id", "C4", "its claims differ from those of the experiment"),
    ],
)
def test_an_edited_claim_is_found(claimed, tmp_path, claim, field, value, expected):
    report = json.loads(contents(claimed)["report/tables.json"])
    report["claims"][claim][field] = value
    changes = {"report/tables.json": json.dumps(report).encode()}
    found = found_in(doctored(claimed, tmp_path / "x.zip", **changes))

    assert any(line.startswith(f"report/tables.json: {expected}") for line in found), found


def test_a_published_number_edited_in_the_yaml_file_is_found(made, tmp_path):
    yaml = TINY.replace("[70.3, 62.9]", "[76.0, 62.9]").encode()
    found = found_in(doctored(made, tmp_path / "x.zip", **{"experiments.yaml": yaml}))

    assert any("published is 70.3, the results give 76.0" in line for line in found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "report/tables.json: is not JSON: "),
        (b"[]", "report/tables.json: does not have the schema "),
        (b'{"schema": 1, "cells": 3}', "report/tables.json: its cells differ"),
        (b'{"schema": 1, "cells": [1, 2, 3, 4]}', "report/tables.json: its cells differ"),
    ],
)
def test_an_invalid_report_is_found(made, tmp_path, content, expected):
    found = found_in(doctored(made, tmp_path / "x.zip", **{"report/tables.json": content}))

    assert any(line.startswith(expected) for line in found), found


def with_entries(file, target, **entries):
    """
    The bundle with other entries in its manifest.
    """
    files = contents(file)
    manifest = json.loads(files["manifest.json"]) | entries
    return write(target, files | {"manifest.json": json.dumps(manifest).encode()})


def reworded(made, target, old, new):
    """
    The bundle with a replaced text in its tables.md.
    """
    text = contents(made)["report/tables.md"].decode()
    assert old in text
    return doctored(made, target, **{"report/tables.md": text.replace(old, new).encode()})


@pytest.mark.parametrize(
    ("old", "new"), [("76.0", "78.0"), ("✗", "✓"), ("| AOL-Conv ", "| AOL-Fast ")]
)
def test_an_edited_table_is_found(made, tmp_path, old, new):
    found = verify_bundle(reworded(made, tmp_path / "x.zip", old, new))

    assert found.discrepancies == ("report/tables.md: its tables differ from the results",)


def test_other_prose_in_the_report_is_no_discrepancy(made, tmp_path):
    """
    Another version of the program may have written it.
    """
    found = verify_bundle(reworded(made, tmp_path / "x.zip", "Percent of the", "Share of all"))

    assert found.discrepancies == ()


def test_missing_and_additional_files_are_found(made, tmp_path, experiment):
    files = contents(made)
    key = experiment.runs[0].key
    del files[f"margins/{key}.f32"]
    found = found_in(write(tmp_path / "x.zip", files | {"notes.txt": b"hello"}))

    assert f"margins/{key}.f32: is missing" in found
    assert "notes.txt: is in the zip but not in the manifest" in found
    assert any(f"cannot be derived without the margins of {key}" in line for line in found)


def damages(content):
    """
    Ways in which a file can be damaged: missing, empty, truncated, binary, another file.
    """
    return [None, b"", content[: len(content) // 2], b"\xff\xfe\x00", b"name: 1\nruns: []\n"]


@pytest.mark.parametrize("kind", range(5))
def test_no_message_contains_the_temporary_folder(made, tmp_path, kind):
    files = contents(made)
    names = [name for name in files if "figures/" not in name and name != "manifest.json"]
    messages = []
    for name in names:
        changed = doctored(made, tmp_path / "x.zip", **{name: damages(files[name])[kind]})
        messages += found_in(changed)

    assert {"store.db", "experiments.yaml", "report/tables.md"} < set(names)
    assert messages
    assert not [line for line in messages if "aol-bundle-" in line or "/tmp/" in line]


def test_files_missing_from_zip_and_manifest_are_found(made, tmp_path, experiment):
    key = experiment.runs[0].key
    changes = {f"margins/{key}.f32": None, "report/tables.json": None}
    found = found_in(doctored(made, tmp_path / "x.zip", **changes))

    assert f"margins/{key}.f32: differs from the margins in the store" in found
    assert "report/tables.json: cannot be read: No such file or directory" in found
    for name in ("store.db", "experiments.yaml"):
        found = found_in(doctored(made, tmp_path / "y.zip", **{name: None}))
        assert any(f"{name}" in line for line in found), found


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (
            "UPDATE runs SET config = json_set(config, '$.batch_size', 999) WHERE run_id = 0",
            "belong",
        ),
        ("UPDATE runs SET config = '{}' WHERE run_id = 0", "its settings are damaged: "),
        (
            "UPDATE runs SET config = 'x' WHERE run_id = 0",
            "store.db is damaged: a stored value is not JSON: ",
        ),
        ("UPDATE runs SET seed = 7 WHERE run_id = 0", "its settings belong to the key "),
        ("UPDATE runs SET epochs = 2 WHERE run_id = 0", "has 2 epochs, its settings have 3"),
        ("UPDATE runs SET status = 'well' WHERE run_id = 0", "store.db: cannot be evaluated: "),
        (
            "DELETE FROM epochs WHERE epoch = 2",
            "is done, but of 3 epochs, number 2 is not recorded",
        ),
        ("UPDATE runs SET data_fingerprint = 'd-d'", "was trained on other images than digits"),
        ("UPDATE runs SET run_id = 5 WHERE run_id = 11", "is not a run of the profile `demo`"),
        ("UPDATE runs SET certificate = NULL WHERE run_id = 0", "no certificate of its Lipschitz"),
        ("UPDATE margins SET \"values\" = x'000000'", "run 0, seed 0: its margins are damaged"),
        ("DELETE FROM margins", "there are no margins"),
    ],
)
def test_a_run_that_contradicts_itself_is_found(made, tmp_path, sql, expected):
    database = edited(made, tmp_path, sql)
    found = found_in(doctored(made, tmp_path / "x.zip", **{"store.db": database}))

    assert any(expected in line for line in found), found


def test_a_newer_store_is_an_error_and_not_a_discrepancy(made, tmp_path):
    database = edited(made, tmp_path, "UPDATE alembic_version SET version_num = '9999'")
    message = rejection(doctored(made, tmp_path / "x.zip", **{"store.db": database}))

    assert message.startswith(f"{tmp_path / 'x.zip'}: store.db: was written by a newer version of")


def test_an_invalid_store_is_found(made, tmp_path):
    found = found_in(doctored(made, tmp_path / "x.zip", **{"store.db": b"no database" * 100}))

    assert len(found) == 1
    assert "store.db cannot be used: file is not a database" in found[0]


# Invalid bundles


def rejection(file, error=BundleError):
    with pytest.raises(error) as caught:
        verify_bundle(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_zip_is_rejected(made, tmp_path, share):
    content = made.read_bytes()
    (tmp_path / "x.zip").write_bytes(content[: int(share * len(content))])

    assert "x.zip: is not a zip file, or is damaged: " in rejection(tmp_path / "x.zip")


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (b"{", "manifest.json is damaged: "),
        (b"\xff", "manifest.json is damaged: "),
        (b"[]", "manifest.json: Input should be"),
        (b'{"version": 2}', "manifest.json: version: Input should be 1, got 2"),
        (b"{}", "manifest.json: experiment: Field required"),
        (None, "has no manifest.json; pass a file that `bundle` wrote"),
    ],
)
def test_a_zip_without_a_valid_manifest_is_rejected(tmp_path, manifest, expected):
    files = {"a.txt": b"a"} | ({"manifest.json": manifest} if manifest else {})

    assert expected in rejection(write(tmp_path / "x.zip", files))


@pytest.mark.parametrize("field", ["experiment", "profile", "program", "commit", "created_at"])
def test_unprintable_characters_in_the_manifest_are_rejected_and_escaped(made, tmp_path, field):
    for value in ("x\nEverything in it agrees.", "\x1b[2J"):
        message = rejection(with_entries(made, tmp_path / "x.zip", **{field: value}))

        expected = f"manifest.json: {field}: must have only printable characters, got"
        assert message.endswith(f"{expected} {value!r}")
        assert "\x1b" not in message


def test_file_names_in_the_manifest_are_escaped(made, tmp_path):
    file = with_entries(made, tmp_path / "x.zip", files={"a\nEverything in it agrees.": {}})

    assert r"files.a\nEverything in it agrees..sha256: Field required" in rejection(file)


def test_an_unprintable_experiment_name_cannot_be_bundled(experiment, store, tmp_path):
    with pytest.raises(BundleError, match=r"experiment: must have only .*, got 'a\\nb'") as caught:
        write_bundle(replace(experiment, name="a\nb"), store, tmp_path / "x.zip", at=AT)

    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_name_with_a_no_break_space_can_be_bundled(experiment, store, tmp_path):
    write_bundle(replace(experiment, name="a\u00a0b"), store, tmp_path / "x.zip", at=AT)

    with archive.unpack_bundle(tmp_path / "x.zip") as found:
        assert found.manifest.experiment == "a\u00a0b"


def test_a_missing_bundle_is_rejected(tmp_path):
    assert rejection(tmp_path / "x.zip") == f"{tmp_path / 'x.zip'}: no such file"


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:/evil", "report/", ".hidden"]
)
def test_no_file_is_unpacked_outside_the_folder(made, tmp_path, name, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    files = contents(made)
    manifest = json.loads(files["manifest.json"])
    entry = {"sha256": hashlib.sha256(b"evil").hexdigest(), "size": 4}
    files["manifest.json"] = json.dumps(
        manifest | {"files": manifest["files"] | {name: entry}}
    ).encode()
    found = found_in(write(tmp_path / "x.zip", files | {name: b"evil"}))

    assert any("is not a valid name in a bundle" in line for line in found), found
    assert {path.name for path in tmp_path.rglob("*")} == {"temporary", "x.zip"}
    assert not Path("/evil").exists()


def test_a_duplicate_file_is_not_unpacked(made, tmp_path):
    files = contents(made)
    write(tmp_path / "x.zip", files)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "x.zip", "a") as opened:
        warnings.simplefilter("ignore")
        opened.writestr("report/tables.md", b"other")

    assert "report/tables.md: occurs 2 times; not unpacked" in found_in(tmp_path / "x.zip")


def test_a_zip_bomb_is_rejected(made, tmp_path, monkeypatch):
    files = contents(made)
    file = write(tmp_path / "x.zip", files | {"zeros": bytes(10**7)})
    assert file.stat().st_size < 10**6
    monkeypatch.setattr(archive, "UNPACKED_LIMIT", 5 * 10**6)
    too_large = rejection(file)
    monkeypatch.setattr(archive, "FILES_LIMIT", 5)
    too_many = rejection(file)

    assert "x.zip: unpacks to 1" in too_large
    assert "5000000 are allowed" in too_large
    assert f"has {len(files) + 1} files; 5 are allowed" in too_many


def test_a_bundle_that_unpacks_to_two_hundred_times_its_size_is_rejected(made, tmp_path):
    file = write(tmp_path / "x.zip", {"manifest.json": b"{}", "zeros": bytes(10**7)})

    assert re.search(r"x\.zip: unpacks to 10000002 bytes; \d+ are allowed", rejection(file))


def with_a_long_list_of_files(file):
    with zipfile.ZipFile(file, "w") as opened:
        for number in range(70_000):
            opened.writestr(zipfile.ZipInfo(str(number)), b"")


def with_a_hidden_list_of_files(file):
    """
    The end of the zip declares a short list; the one for large zips, before it, is what is read.
    """
    with_a_long_list_of_files(file)
    content = file.read_bytes()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 46, 0, 0)
    file.write_bytes(content[: -len(end)] + end)


@pytest.mark.parametrize("make", [with_a_long_list_of_files, with_a_hidden_list_of_files])
def test_a_long_list_of_files_is_rejected_before_it_is_read(tmp_path, make):
    make(tmp_path / "x.zip")

    assert "x.zip: its list of files is larger than 16777216 bytes" in rejection(tmp_path / "x.zip")


def test_a_large_file_is_rejected_before_it_is_read(tmp_path):
    with (tmp_path / "x.zip").open("wb") as file:
        file.truncate(2**31 + 1)  # takes no space

    assert "x.zip: has 2147483649 bytes; 2147483648 are allowed" in rejection(tmp_path / "x.zip")


def test_a_false_size_does_not_unpack_more_than_declared(made, tmp_path):
    """
    The zip declares ten bytes for a file of ten million.
    """
    files = contents(made)
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["zeros"] = {"sha256": "0" * 64, "size": 10}
    files["manifest.json"] = json.dumps(manifest).encode()
    file = write(tmp_path / "x.zip", files | {"zeros": bytes(10**7)})
    content = file.read_bytes()
    lie = content.replace(struct.pack("<I", 10**7), struct.pack("<I", 10))
    assert lie != content
    file.write_bytes(lie)
    found = found_in(file)

    assert len(found) == 1
    assert found[0].startswith("zeros: ")


def test_a_full_temporary_folder_is_a_one_line_error(made, mounted, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(mounted("size=100k")))

    message = rejection(made, OutputError)

    assert message.endswith(
        f"demo.zip: cannot be unpacked in {tempfile.gettempdir()}: No space left on device"
    )


# The commands


def test_a_bundle_can_be_verified_on_another_machine(home, made, tmp_path):
    """
    The other machine has nothing but the bundle.
    """
    shell, there = Shell(home, home, TINY), Shell(tmp_path / "there", tmp_path)
    (tmp_path / "there" / "experiments.yaml").unlink()
    written = shell("bundle", "new.zip", "--profile", "demo")
    again = shell("bundle", "new.zip", "--profile", "demo")
    checked = there("verify", home / "new.zip")
    as_json = there("verify", home / "new.zip", "--json")
    record = json.loads(as_json.stdout)

    assert written.returncode == checked.returncode == as_json.returncode == 0, written.stderr
    assert written.stdout.startswith("new.zip: profile demo, ")
    digest = hashlib.sha256((home / "new.zip").read_bytes()).hexdigest()
    assert f"SHA-256 {digest}" in written.stdout
    assert f"SHA-256 {digest}" in checked.stdout
    assert (again.returncode, again.stderr) == (
        2,
        "Error: new.zip: exists already; pass --force to replace it\n",
    )
    assert checked.stdout.startswith("demo: not comparable\n\n")
    assert record["note"] == "demo: not comparable"
    assert "The only table: 2 of 2 measured cells follow from the margins; " in checked.stdout
    assert checked.stdout.endswith("Everything in it agrees.\n")
    assert (record["sha256"], record["bundle"]["profile"]) == (digest, "demo")
    assert record["discrepancies"] == []
    assert record["tables"][0]["confirmed"] == 2
    assert list((tmp_path / "there").iterdir()) == []


def test_verify_lists_discrepancies_and_exits_with_4(made, tmp_path):
    text = contents(made)["report/tables.md"].replace(b"76.0", b"78.0")
    file = doctored(made, tmp_path / "x.zip", **{"report/tables.md": text})
    shell = Shell(tmp_path / "here", tmp_path)
    done, as_json = shell("verify", file), shell("verify", file, "--json")

    assert done.returncode == as_json.returncode == 4
    assert done.stderr == "Error: report/tables.md: its tables differ from the results\n"
    assert json.loads(as_json.stdout)["discrepancies"] == [
        "report/tables.md: its tables differ from the results"
    ]


def test_verify_escapes_the_text_of_a_bundle(made, tmp_path):
    """
    The YAML file and the manifest are untrusted.
    """
    odd = "demo\\e[2J\\nEverything in it agrees."
    yaml = contents(made)["experiments.yaml"].decode().replace("demo: not comparable", odd)
    file = doctored(made, tmp_path / "x.zip", **{"experiments.yaml": yaml.encode()})
    files = contents(file)
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["a\nEverything in it agrees."] = {"sha256": "0" * 64, "size": 1}
    file = write(tmp_path / "y.zip", files | {"manifest.json": json.dumps(manifest).encode()})
    done = Shell(tmp_path / "here", tmp_path)("verify", file)

    assert done.returncode == 4
    assert "\x1b" not in done.stdout + done.stderr
    assert "Everything in it agrees." not in (done.stdout + done.stderr).splitlines()
    assert r"Error: a\nEverything in it agrees.: is missing" in done.stderr.splitlines()


def test_verify_rejects_other_files_and_exits_with_2(tmp_path):
    (tmp_path / "x.zip").write_text("no zip")
    done = Shell(tmp_path / "here", tmp_path)("verify", tmp_path / "x.zip")

    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {tmp_path / 'x.zip'}: is not a zip file, or is damaged")
    assert done.stderr.count("\n") == 1


# Files that cannot be read


def fail(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_bundle_that_cannot_be_opened_is_named_and_not_the_temporary_folder(made, monkeypatch):
    monkeypatch.setattr(archive, "ZipFile", fail)

    assert rejection(made) == f"{made}: cannot be read: Permission denied"


def test_a_bundle_whose_disk_fails_is_named_and_not_the_temporary_folder(made, monkeypatch):
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(
        zipfile.ZipExtFile, "read", lambda file, n=-1: fail() if n > 0 else read(file, n)
    )

    assert rejection(made) == f"{made}: cannot be read: Permission denied"


def test_without_a_temporary_folder_the_error_is_one_line(made, monkeypatch):
    monkeypatch.setattr(archive, "TemporaryDirectory", fail)

    assert "demo.zip: cannot be unpacked in " in rejection(made, OutputError)


def test_verify_of_a_missing_file_exits_with_2(tmp_path):
    done = Shell(tmp_path / "here", tmp_path)("verify", "none.zip")

    assert (done.returncode, done.stderr) == (2, "Error: none.zip: no such file\n")


@pytest.fixture
def clone(home, experiment, store, tmp_path, data_root):
    """
    Return the shell of another folder with the YAML file and the bundle, and without a store.
    """
    shell = Shell(tmp_path / "clone", data_root)
    bundle = shell.folder / "results" / "demo" / "bundle.zip"
    bundle.parent.mkdir(parents=True)
    write_bundle(experiment, store, bundle, at=AT)
    return shell


def test_commands_read_the_bundle_of_a_profile_that_the_store_lacks(clone):
    report = clone("report", "--profile", "demo", "--format", "json")
    cells = json.loads(report.stdout)["cells"]

    assert report.returncode == 0, report.stderr
    assert "Reading results/demo/bundle.zip, as the store has no run of the" in report.stderr
    assert any(cell["seeds"] == 2 for cell in cells)
    assert clone("cra", "--profile", "demo", "--radius", "1/4").returncode == 0
    assert not (clone.folder / "results" / "store.db").exists()


def test_a_bundle_is_read_like_a_store_and_never_written(clone):
    bundle = clone.folder / "results" / "demo" / "bundle.zip"
    before = bundle.read_bytes()
    found = clone("query", "SELECT key FROM runs", "--store", str(bundle))

    assert found.returncode == 0, found.stderr
    assert found.stdout.count("-s") >= 3
    assert bundle.read_bytes() == before


def test_the_runs_of_a_bundle_are_merged(clone):
    bundle = clone.folder / "results" / "demo" / "bundle.zip"
    merged = clone("merge", str(bundle))
    report = clone("report", "--profile", "demo")

    assert merged.returncode == 0, merged.stderr
    assert merged.stdout.count("imported") >= 2
    assert "bundle.zip" not in report.stderr


def test_a_damaged_bundle_is_not_taken_for_a_store(clone):
    bundle = clone.folder / "results" / "demo" / "bundle.zip"
    with zipfile.ZipFile(bundle) as packed:
        place = packed.getinfo("store.db").header_offset + 200
    content = bytearray(bundle.read_bytes())
    content[place] ^= 1
    bundle.write_bytes(content)
    found = clone("report", "--profile", "demo")

    assert found.returncode == 2
    assert "bundle.zip: " in found.stderr
    assert "Traceback" not in found.stderr
