"""Packs what a bare machine needs to train: the core, the plan, verified images, wheels.

    python scripts/pack.py DIR --spec experiments.yaml --profile paper --data ROOT [--wheels FOLDER]

writes DIR/pack-00.part, -01 ... of 50 MB at most, and beside them `unpack.py`, which checks and
unpacks them there with nothing but Python. What to do next is in `docs/bare-machine.md`.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PIECE_BYTES = 50_000_000  # some ways in take 64 MiB a trip, source tree and all
XZ_PRESET = 2  # images hardly become smaller with more


def main() -> None:
    """Pack; print the pieces."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="where the pieces go")
    add("--spec", type=Path, default=PROJECT / "experiments.yaml")
    add("--profile", default="paper")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `plan`")
    add("--data", type=Path, required=True, help="the data root")
    add("--wheels", type=Path, help="a folder of wheels to take along")
    add("--piece-bytes", type=int, default=PIECE_BYTES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary) / "box"
        stage.mkdir()
        runs = write_plan(stage / "plan.json", options.spec, options.profile, options.set)
        copy_source(stage)
        copy_images(stage / "data", options.data, {run["dataset"] for run in runs})
        if options.wheels:
            shutil.copytree(options.wheels, stage / "wheels")
        for piece in pack(stage, options.folder, options.piece_bytes):
            print(f"{piece}  {piece.stat().st_size / 1e6:.1f} MB")


def write_plan(file: Path, spec: Path, profile: str, settings: list[str]) -> list[dict[str, str]]:
    """Every run of the profile as `plan --json` prints it, whatever a store holds of it."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "orchestrator", "plan", str(spec), "--json"]
        command += ["--profile", profile, "--results", empty, "--set", "resources.gpus=0"]
        command += [part for text in settings for part in ("--set", text)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    file.write_text(done.stdout, encoding="utf-8")
    runs: list[dict[str, str]] = json.loads(done.stdout)
    return runs


def copy_source(stage: Path) -> None:
    """The core with the checkout it is of, its benchmarks, and the script that trains runs."""
    sys.path.insert(0, str(PROJECT))
    from aol.checkout import PACKED, checkout

    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "aol", stage / "aol", ignore=ignored)
    benchmarks = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(PROJECT / "benchmarks", stage / "benchmarks", ignore=benchmarks)
    (stage / "aol" / PACKED.name).write_text(checkout().as_json(), encoding="utf-8")
    shutil.copy(PROJECT / "scripts" / "campaign.py", stage)


def copy_images(root: Path, source: Path, datasets: set[str]) -> None:
    """The verified file of each dataset, made if need be."""
    from aol.data import kept_file, prepare

    (root / "verified").mkdir(parents=True)
    for name in sorted(datasets):
        prepare(name, source)
        shutil.copy(kept_file(name, source), root / "verified")


def pack(stage: Path, folder: Path, piece_bytes: int) -> list[Path]:
    """The stage as one compressed tar file, cut into pieces with a list of their hashes."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("pack-*.part"):
        old.unlink()
    whole = stage.with_suffix(".tar.xz")
    with tarfile.open(whole, "w:xz", preset=XZ_PRESET) as archive:
        archive.add(stage, arcname=".")
    hashes, pieces = {}, []
    with whole.open("rb") as file:
        while content := file.read(piece_bytes):
            piece = folder / f"pack-{len(pieces):02}.part"
            piece.write_bytes(content)
            hashes[piece.name] = hashlib.sha256(content).hexdigest()
            pieces.append(piece)
    (folder / "pack.json").write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    shutil.copy(PROJECT / "scripts" / "unpack.py", folder)
    return pieces


if __name__ == "__main__":
    main()
