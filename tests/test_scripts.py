"""
The way to a machine without the orchestrator and back: pack, unpack, train, ingest.
"""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from aol import data
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
    assert "run 11 needs 3000 s, 2" in done.stdout
    assert (found.run.id, found.status) == (0, Status.DONE)
    packed = Checkout(**json.loads((box / "aol" / "checkout.json").read_text()))
    assert found.attempts[0].commit == packed.commit
    assert not list((tmp_path / "home").rglob("state-*"))


# The campaign, with a program in place of the training


TRAINING = """
import json, pathlib, signal, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
plan = {run["id"]: run for run in json.loads(pathlib.Path("plan.json").read_text())}
folder = pathlib.Path(arguments["--out"]) / plan[int(arguments["--run"])]["key"]
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text("{}")
with pathlib.Path("called").open("a") as file:
    print(arguments["--run"], arguments["--until-seconds"], file=file)
"""
END = '(folder / "end.json").write_text("{}")'
SLOW = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("trains", flush=True)
time.sleep(60)
"""


@pytest.fixture
def campaign(tmp_path):
    """
    Starts campaign.py in a box of three runs of ten epochs, whose training is the given code.
    """

    def start(*arguments, training=END):
        package = tmp_path / "aol"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(TRAINING + training)
        plan = [{"id": run, "key": f"{run}-key", "epochs": 10} for run in (0, 1, 2)]
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        source = (PROJECT / "scripts" / "campaign.py").read_text()
        (tmp_path / "campaign.py").write_text(source.replace("COLLECT_S = 60.0", "COLLECT_S = 0.1"))
        command = [sys.executable, "campaign.py", "--collect", "home", *arguments]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def called(folder):
    file = folder / "called"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def brought_home(folder):
    with tarfile.open(folder / "home" / "results.tar.xz") as archive:
        return sorted(archive.getnames())


def test_a_run_is_begun_if_the_lease_has_time_for_it_and_stopped_with_the_command(
    campaign, tmp_path
):
    """
    Run 0 takes ten minutes: more than the command has, less than the lease. Run 1 takes too long.
    """
    rates = json.dumps({"0": 60, "1": 200})
    arguments = ["--runs", "0,1", "--minutes", "9", "--lease-minutes", "25", "--rates", rates]
    out, _ = campaign(*arguments).communicate(timeout=60)

    assert [run for run, _ in called(tmp_path)] == ["0"]
    assert 530 <= int(called(tmp_path)[0][1]) <= 540
    assert "run 1 needs 2000 s, 1" in out


def test_finished_runs_cost_nothing_and_a_command_without_time_begins_none(campaign, tmp_path):
    (tmp_path / "out" / "0-key").mkdir(parents=True)
    (tmp_path / "out" / "0-key" / "end.json").write_text("{}")
    campaign("--runs", "0,1", "--minutes", "2").communicate(timeout=60)
    out, _ = campaign("--runs", "0,2", "--minutes", "0.4").communicate(timeout=60)

    assert [run for run, _ in called(tmp_path)] == ["1"]
    assert "24 s are left: call again for run 2" in out


def test_an_unknown_run_is_one_line(campaign, tmp_path):
    process = campaign("--runs", "0,7", "--minutes", "2")
    _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (2, "--runs: there is no run 7; the runs are 0, 1, 2\n")
    assert called(tmp_path) == []


def test_with_nothing_begun_there_is_an_empty_archive(campaign, tmp_path):
    process = campaign("--runs", "0", "--minutes", "2", "--rates", '{"0": 1000}')
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert brought_home(tmp_path) == []


def test_what_is_done_comes_home_while_a_run_trains_and_a_signal_ends_all(campaign, tmp_path):
    """
    The archive is whole at any time; after the signal no further run is begun.
    """
    process = campaign("--runs", "0,1", "--minutes", "2", training=SLOW)
    assert process.stdout.readline() == "trains\n"
    archive = tmp_path / "home" / "results.tar.xz"
    ends = time.monotonic() + 30
    while not archive.exists() and time.monotonic() < ends:
        time.sleep(0.05)
    during = brought_home(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert during == ["0-key/run.json"]
    assert process.returncode == 143
    assert [run for run, _ in called(tmp_path)] == ["0"]


def test_images_of_a_root_that_cannot_be_written_are_packed_from_where_they_are_kept(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    from pack import copy_images

    monkeypatch.setattr(data, "_is_read_only", lambda root: True)
    monkeypatch.setattr(data, "_cache", lambda: tmp_path / "cache")
    (tmp_path / "root").mkdir()
    copy_images(tmp_path / "stage", tmp_path / "root", {"digits"})

    assert (tmp_path / "stage" / "verified" / "digits.npy").exists()
    assert not (tmp_path / "root" / "verified").exists()
