"""
Training on a machine without the orchestrator: pack, unpack, train, ingest.
"""

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from aol.data import datasets as data
from aol.data.datasets import prepare
from aol.provenance import Checkout
from orchestrator.sharing.run_folder import find_run_folders, read_run_folder
from orchestrator.store import Status
from tests.support.mounts import read_only
from tests.support.shell import PROJECT, TINY, Shell

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pack(tmp_path_factory, data_root):
    """
    Return a function that packs the tiny experiment with its images into pieces of 20 kB.
    """
    home = tmp_path_factory.mktemp("home")
    prepare("digits", data_root)
    shell = Shell(home, data_root, TINY)
    (home / "wheels").mkdir()
    (home / "wheels" / "some.whl").write_text("a wheel")

    def run(folder, *more):
        arguments = [folder, "--spec", "experiments.yaml", "--profile", "demo"]
        arguments += ["--data", data_root, "--piece-bytes", "20000", *more]
        return subprocess.run(
            [sys.executable, *map(str, [PROJECT / "scripts" / "pack.py", *arguments])],
            cwd=home,
            env=shell.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def pieces(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack") / "pieces"
    done = pack(folder, "--wheels", "wheels")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def arrived(pieces, tmp_path):
    shutil.copytree(pieces, tmp_path / "pieces")
    return tmp_path / "pieces"


def unpack(arrived, **replaced):
    """
    Return the exit code and the output lines of unpack.py after replacing some lines of its source.
    """
    program = arrived / "unpack.py"
    source = program.read_text()
    for old, new in replaced.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    done = subprocess.run(
        [sys.executable, "-c", source, "pieces", "box"],
        cwd=arrived.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, sorted(done.stdout.splitlines())


def write_result(box):
    """
    Write a result of a run, which unpacking must not change, and return its file.
    """
    file = box / "out" / "0-key" / "metrics.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    return file


PARTS = ("code", "digits", "wheels")
PRESENT = [f"{part}: there already" for part in PARTS]
UNPACKED = [f"{part}: unpacked into box" for part in PARTS]


def test_no_piece_is_larger_than_requested_and_each_belongs_to_one_part(pieces):
    sizes = {path.name: path.stat().st_size for path in sorted(pieces.glob("*.part"))}
    parts = json.loads((pieces / "parts.json").read_text())

    assert list(parts) == list(PARTS)
    assert set(sizes) == {name for part in parts.values() for name in part["pieces"]}
    assert min(len(parts[name]["pieces"]) for name in ("code", "digits")) > 2
    for part in parts.values():
        *others, last = [sizes[name] for name in part["pieces"]]
        assert set(others) <= {20000}
        assert last <= 20000


def test_unpacking_twice_changes_nothing(arrived):
    first = unpack(arrived)
    box = arrived.parent / "box"
    before = {path: path.stat().st_mtime_ns for path in box.rglob("*")}

    assert first == (0, UNPACKED)
    assert unpack(arrived) == (0, PRESENT)
    assert {path: path.stat().st_mtime_ns for path in box.rglob("*")} == before
    assert (box / "wheels" / "some.whl").read_text() == "a wheel"
    assert (box / "benchmarks" / "reference.pt").exists()
    assert sorted(path.name for path in (box / ".parts").iterdir()) == [
        f"{part}.json" for part in PARTS
    ]


def test_missing_pieces_are_listed_with_exit_code_75_and_the_other_parts_unpacked(arrived):
    held = arrived / "digits-01.part"
    content = held.read_bytes()
    held.unlink()
    first = unpack(arrived)
    images = arrived.parent / "box" / "data" / "verified" / "digits.npy"
    before = images.exists()
    held.write_bytes(content)

    missing = "digits: still missing: digits-01.part"
    assert first == (75, [UNPACKED[0], missing, UNPACKED[2]])
    assert not before
    assert unpack(arrived) == (0, [PRESENT[0], UNPACKED[1], PRESENT[2]])
    assert images.exists()


def test_damaged_pieces_are_listed_with_exit_code_1_even_if_others_are_missing(arrived):
    (arrived / "code-00.part").write_bytes(b"damaged")
    (arrived / "digits-00.part").unlink()
    torn = arrived / "code-01.part"
    torn.write_bytes(torn.read_bytes()[:-1])

    assert unpack(arrived) == (
        1,
        [
            "code: damaged or of another pack, send again: code-00.part code-01.part",
            "digits: still missing: digits-00.part",
            UNPACKED[2],
        ],
    )
    assert not (arrived.parent / "box" / "aol").exists()


def test_pieces_of_unpacked_parts_can_be_deleted(arrived):
    """
    Images that were unpacked before need not be sent again.
    """
    unpack(arrived)
    for piece in arrived.glob("digits-*.part"):
        piece.unlink()
    again = unpack(arrived)
    (arrived.parent / "box" / "data" / "verified" / "digits.npy").unlink()

    assert again == (0, PRESENT)
    assert unpack(arrived)[0] == 75


def test_a_missing_or_damaged_list_is_a_one_line_error(arrived):
    listed = arrived / "parts.json"
    listed.write_text(listed.read_text()[:-9])
    damaged = unpack(arrived)
    listed.unlink()

    assert damaged == (1, ["pieces/parts.json: damaged, send it again"])
    expected = "pieces/parts.json: cannot be read (No such file or directory): send it"
    assert unpack(arrived) == (2, [expected])


def test_an_unwritable_box_is_a_one_line_error(arrived):
    (arrived.parent / "box").write_text("a file")
    code, lines = unpack(arrived)

    assert code == 1
    assert len(lines) == 1
    assert lines[0].startswith("box: cannot be written: ")


@pytest.fixture
def new_code(pack, arrived, tmp_path):
    """
    Return a function that packs the code again, with other settings, and returns the output.
    """

    def make():
        done = pack(arrived, "--only", "code", "--set", "epochs=2")
        assert done.returncode == 0, done.stderr
        return done.stdout

    return make


def test_new_code_replaces_the_old_and_keeps_data_and_results(arrived, new_code):
    """
    Only the pieces of the code are packed again. Files that the new code lacks are deleted,
    including bytecode.
    """
    unpack(arrived)
    box = arrived.parent / "box"
    result = write_result(box)
    images = (box / "data" / "verified" / "digits.npy").stat()
    for gone in ("aol/of_old.py", "aol/__pycache__/config.pyc"):
        (box / gone).parent.mkdir(exist_ok=True)
        (box / gone).touch()
    before = {path.name: path.read_bytes() for path in arrived.glob("digits-*.part")}
    printed = new_code()

    assert "code-00.part" in printed
    assert "digits" not in printed
    assert before == {path.name: path.read_bytes() for path in arrived.glob("digits-*.part")}
    assert unpack(arrived) == (0, [UNPACKED[0], *PRESENT[1:]])
    assert result.read_text() == "{}"
    assert (box / "data" / "verified" / "digits.npy").stat() == images
    assert not (box / "aol" / "of_old.py").exists()
    assert not (box / "aol" / "__pycache__").exists()
    assert (box / "wheels" / "some.whl").exists()
    assert {run["epochs"] for run in json.loads((box / "plan.json").read_text())} == {2}


KILL = "__import__('os').kill(__import__('os').getpid(), 9)"
STEPS = [
    "    note.unlink(missing_ok=True)\n",
    "        remove(box / path)\n",
    "        (stage / path).replace(box / path)\n",
    "    shutil.rmtree(stage)\n",
    "    new_note.replace(note)\n",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_call_is_completed_by_the_next(arrived, new_code, step):
    """
    The process is killed after each step of replacing old code, once.
    """
    unpack(arrived)
    box = arrived.parent / "box"
    result = write_result(box)
    new_code()
    indent = " " * (len(step) - len(step.lstrip()))
    killed = unpack(arrived, **{step: f"{step}{indent}{KILL}\n"})
    again = unpack(arrived)

    assert killed[0] == -9
    assert again[0] == 0
    assert unpack(arrived) == (0, PRESENT)
    assert result.exists()
    assert {run["epochs"] for run in json.loads((box / "plan.json").read_text())} == {2}
    assert (box / "aol" / "checkout.json").exists()
    assert sorted(path.name for path in (box / ".parts").iterdir()) == [
        f"{part}.json" for part in PARTS
    ]


def test_a_part_that_is_no_longer_needed_is_removed_from_the_list(pack, arrived):
    """
    Packing everything removes it; packing a single part keeps the others.
    """
    pack(arrived, "--only", "code")
    before = sorted(json.loads((arrived / "parts.json").read_text()))
    pack(arrived)

    assert before == list(PARTS)
    assert sorted(json.loads((arrived / "parts.json").read_text())) == ["code", "digits"]
    assert not list(arrived.glob("wheels-*"))


def test_an_unknown_part_is_a_one_line_error(pack, tmp_path):
    done = pack(tmp_path / "pieces", "--only", "cifar10")

    assert done.returncode == 2
    assert done.stderr == "--only: no part cifar10; the parts are code, digits\n"


def test_a_packed_run_can_be_trained_and_ingested(arrived, tmp_path):
    """
    Only the box is on the path. A run that does not fit into the time is not started.
    """
    assert unpack(arrived)[0] == 0
    box = tmp_path / "box"
    rates = json.dumps({"11": 1000})
    arguments = ["--runs", "0,11", "--minutes", "5", "--rates", rates, "--collect", "../results"]
    command = [sys.executable, "campaign.py", *arguments, "--", "--device", "cpu"]
    done = subprocess.run(command, cwd=box, capture_output=True, text=True, check=False)
    with tarfile.open(tmp_path / "results" / "results.tar.xz") as archive:
        archive.extractall(tmp_path / "home", filter="data")
    (found,) = map(read_run_folder, find_run_folders(tmp_path / "home"))

    assert done.returncode == 0, done.stderr
    assert "run 11 needs 3020 s, 2" in done.stdout
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
    Return a function that starts campaign.py with three runs of ten epochs and the given training
    code.
    """

    def start(*arguments, training=END):
        package = tmp_path / "aol"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(TRAINING + training)
        names = ["AOL-Small", "AOL-Medium", "AOL-Large"]
        plan = [
            {"id": run, "key": f"{run}-key", "name": name, "epochs": 10}
            for run, name in enumerate(names)
        ]
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        source = (PROJECT / "scripts" / "campaign.py").read_text()
        (tmp_path / "campaign.py").write_text(source.replace("COLLECT_S = 60.0", "COLLECT_S = 0.1"))
        command = [sys.executable, "campaign.py", "--collect", "home", *arguments]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return start


def started_runs(folder):
    file = folder / "called"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def collected(folder):
    with tarfile.open(folder / "home" / "results.tar.xz") as archive:
        return sorted(archive.getnames())


def test_a_run_that_fits_into_the_lease_is_started_and_stopped_with_the_command(campaign, tmp_path):
    """
    Run 0 takes ten minutes: more than the command has, less than the lease. Run 1 takes too long.
    Time for starting and certifying is reserved.
    """
    rates = json.dumps({"0": 60, "1": 200})
    arguments = ["--runs", "0,1", "--minutes", "9", "--lease-minutes", "25", "--rates", rates]
    out, _ = campaign(*arguments).communicate(timeout=60)

    assert [run for run, _ in started_runs(tmp_path)] == ["0"]
    assert 510 <= int(started_runs(tmp_path)[0][1]) <= 520
    assert "run 1 needs 2020 s, 1" in out


def test_a_run_whose_rate_is_missing_is_started_with_a_note(campaign, tmp_path):
    out, _ = campaign("--runs", "0,1", "--minutes", "9", "--rates", '{"1": 1}').communicate(
        timeout=60
    )

    assert "run 0: no rate is given, it is started in any case\n" in out
    assert "run 1" not in out
    assert [run for run, _ in started_runs(tmp_path)] == ["0", "1"]


def test_rates_can_be_in_a_file_and_by_network(campaign, tmp_path):
    """
    A run's own rate takes precedence over that of its network.
    """
    rates = {"AOL-Medium": 200, "2": 1, "AOL-Large": 300}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    arguments = ["--runs", "1,2", "--minutes", "9", "--rates", "rates.json"]
    out, _ = campaign(*arguments).communicate(timeout=60)

    assert [run for run, _ in started_runs(tmp_path)] == ["2"]
    assert "run 1 needs 2020 s" in out


@pytest.mark.parametrize("rates", ["none.json", "{0: 1}", '{"0": "fast"}', '{"0": null}', "[1]"])
def test_invalid_rates_are_a_one_line_error(campaign, tmp_path, rates):
    process = campaign("--runs", "0", "--minutes", "2", "--rates", rates)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 2
    assert err.startswith(f"--rates: {rates} is neither JSON nor a file of it: seconds per epoch")
    assert err.count("\n") == 1
    assert started_runs(tmp_path) == []


def test_finished_runs_are_skipped_and_none_is_started_without_time(campaign, tmp_path):
    (tmp_path / "out" / "0-key").mkdir(parents=True)
    (tmp_path / "out" / "0-key" / "end.json").write_text("{}")
    campaign("--runs", "0,1", "--minutes", "2").communicate(timeout=60)
    out, _ = campaign("--runs", "0,2", "--minutes", "0.7").communicate(timeout=60)

    assert [run for run, _ in started_runs(tmp_path)] == ["1"]
    assert "42 s are left: call again for run 2" in out


def test_an_unknown_run_is_a_one_line_error(campaign, tmp_path):
    process = campaign("--runs", "0,7", "--minutes", "2")
    _, err = process.communicate(timeout=60)

    assert (process.returncode, err) == (2, "--runs: there is no run 7; the runs are 0, 1, 2\n")
    assert started_runs(tmp_path) == []


def test_the_archive_is_empty_if_no_run_was_started(campaign, tmp_path):
    process = campaign("--runs", "0", "--minutes", "2", "--rates", '{"0": 1000}')
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert collected(tmp_path) == []


def test_results_are_collected_during_training_and_a_signal_stops_the_campaign(campaign, tmp_path):
    """
    The archive is complete at any time. After the signal no further run is started.
    """
    process = campaign("--runs", "0,1", "--minutes", "2", training=SLOW)
    assert process.stdout.readline() == "trains\n"
    archive = tmp_path / "home" / "results.tar.xz"
    ends = time.monotonic() + 30
    while time.monotonic() < ends and not (archive.exists() and collected(tmp_path)):
        time.sleep(0.05)
    during = collected(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)

    assert during == ["0-key/run.json"]
    assert process.returncode == 143
    assert [run for run, _ in started_runs(tmp_path)] == ["0"]


def test_images_of_a_read_only_root_are_packed_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "scripts"))
    from pack import copy_images

    monkeypatch.setattr(data, "_cache_folder", lambda: tmp_path / "cache")
    (tmp_path / "root").mkdir()
    with read_only(tmp_path / "root") as root:
        copy_images(tmp_path / "stage", root, "digits")

    assert (tmp_path / "stage" / "verified" / "digits.npy").exists()
    assert not (tmp_path / "root" / "verified").exists()
