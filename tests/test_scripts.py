"""
The way to a machine without the orchestrator and back: pack, unpack, train, ingest.
"""

import json
import shutil
import subprocess
import sys
import tarfile

import pytest

from aol.checkout import Checkout
from aol.data import prepare
from orchestrator.folders import folders_in, read
from orchestrator.store import Status
from tests.cli import PROJECT, TINY, Shell


@pytest.fixture(scope="module")
def pieces(tmp_path_factory, data_root):
    """
    The tiny experiment with its images, in pieces of 20 kB.
    """
    folder = tmp_path_factory.mktemp("pack")
    prepare("digits", data_root)
    shell = Shell(folder, data_root, TINY)
    arguments = ["--spec", "experiments.yaml", "--profile", "demo", "--data", data_root]
    command = [PROJECT / "scripts" / "pack.py", "pieces", *arguments, "--piece-bytes", "20000"]
    subprocess.run(
        [sys.executable, *map(str, command)], cwd=folder, env=shell.environment, check=True
    )
    return folder / "pieces"


@pytest.fixture
def arrived(pieces, tmp_path):
    shutil.copytree(pieces, tmp_path / "pieces")
    return tmp_path / "pieces"


def unpack(arrived):
    command = [sys.executable, "pieces/unpack.py", "pieces", "box"]
    return subprocess.run(command, cwd=arrived.parent, capture_output=True, text=True, check=False)


def test_no_piece_is_larger_than_asked(pieces):
    sizes = [path.stat().st_size for path in sorted(pieces.glob("pack-*.part"))]

    assert len(sizes) > 2
    assert set(sizes[:-1]) == {20000}
    assert sizes[-1] <= 20000


def test_missing_pieces_are_named_with_exit_75(arrived):
    (arrived / "pack-01.part").unlink()
    done = unpack(arrived)

    assert (done.returncode, done.stderr) == (75, "still missing: pack-01.part\n")
    assert not (arrived.parent / "box").exists()


def test_a_damaged_piece_is_named_with_exit_1(arrived):
    (arrived / "pack-00.part").write_bytes(b"damaged")
    done = unpack(arrived)

    assert (done.returncode, done.stderr) == (1, "damaged, send again: pack-00.part\n")


def test_what_was_packed_trains_there_and_is_taken_in_here(arrived, tmp_path):
    """
    Nothing but the box is on the path; the run that does not fit is not begun.
    """
    assert unpack(arrived).returncode == 0
    box = tmp_path / "box"
    rates = json.dumps({"11": 1000})
    arguments = ["--runs", "0,11", "--minutes", "5", "--rates", rates, "--collect", "../results"]
    command = [sys.executable, "campaign.py", *arguments, "--", "--device", "cpu"]
    done = subprocess.run(command, cwd=box, capture_output=True, text=True, check=False)
    with tarfile.open(tmp_path / "results" / "results.tar.xz") as archive:
        archive.extractall(tmp_path / "home", filter="data")
    (found,) = map(read, folders_in(tmp_path / "home"))

    assert done.returncode == 0, done.stderr
    assert "run 11 needs 3000 s and 2" in done.stdout
    assert (found.run.id, found.status) == (0, Status.DONE)
    packed = Checkout(**json.loads((box / "aol" / "checkout.json").read_text()))
    assert found.attempts[0].commit == packed.commit
    assert not list((tmp_path / "home").rglob("state-*"))
