"""Pack everything that a bare machine needs to train: the code with its plan, images, wheels.

    python scripts/pack.py DIR --profile paper --data ROOT [--wheels FOLDER]

writes into DIR the parts `code` (the core, the benchmarks, the plan), one for each dataset, and
`wheels`, each as pieces of 50 MB at most, `parts.json` with their hashes, and
`unpack.py`, which checks and unpacks them there and needs only Python. After a change of the code,
`--only code` packs that part again and leaves the others. Next: `docs/bare-machine.md`.
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
from typing import Any

PROJECT = Path(__file__).parent.parent
PIECE_BYTES = 50_000_000  # some transfers are limited to 64 MiB
XZ_PRESET = 2  # higher presets hardly make images smaller
CODE, WHEELS = "code", "wheels"  # parts beside the datasets
PACKAGES = ("aol", "benchmarks")


def main() -> int:
    """Pack the parts and print their pieces."""
    options = _parser().parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        plan = Path(temporary) / "plan.json"
        runs = write_plan(plan, options.spec, options.profile, options.set)
        parts = {CODE: plan} | {run["dataset"]: options.data for run in runs}
        parts |= {WHEELS: options.wheels} if options.wheels else {}
        if unknown := sorted(set(options.only or []) - set(parts)):
            print(
                f"--only: no part {unknown[0]}; the parts are {', '.join(parts)}", file=sys.stderr
            )
            return 2
        for name in options.only or parts:
            stage = Path(temporary) / name
            stage.mkdir()
            owns = [
                path.relative_to(stage).as_posix() for path in stage_part(name, parts[name], stage)
            ]
            list_part(options.folder, name, owns, pack(stage, options.folder, options.piece_bytes))
    if not options.only:
        remove_other_parts(options.folder, set(parts))
    shutil.copy(PROJECT / "scripts" / "unpack.py", options.folder)
    return 0


def write_plan(file: Path, spec: Path, profile: str, settings: list[str]) -> list[dict[str, str]]:
    """Write every run of the profile as `plan --json` prints it; a store is not read."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-m", "orchestrator", "plan", str(spec), "--json"]
        command += ["--profile", profile, "--results", empty, "--set", "resources.gpus=0"]
        command += [part for text in settings for part in ("--set", text)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    file.write_text(done.stdout, encoding="utf-8")
    runs: list[dict[str, str]] = json.loads(done.stdout)
    return runs


def stage_part(part: str, source: Path, stage: Path) -> list[Path]:
    """Copy a part to the stage; return the files and folders that it consists of."""
    if part == CODE:
        return copy_code(stage, source)
    if part == WHEELS:
        return [Path(shutil.copytree(source, stage / WHEELS))]
    return [copy_images(stage / "data", source, part)]


def copy_code(stage: Path, plan: Path) -> list[Path]:
    """Copy the core with its checkout, the benchmarks, the plan and `campaign.py`."""
    sys.path.insert(0, str(PROJECT))
    from aol.provenance import PACKED, checkout

    ignored = shutil.ignore_patterns("__pycache__", "results")
    packages = [shutil.copytree(PROJECT / name, stage / name, ignore=ignored) for name in PACKAGES]
    (stage / "aol" / PACKED.name).write_text(checkout().as_json(), encoding="utf-8")
    files = [shutil.copy(file, stage) for file in (plan, PROJECT / "scripts" / "campaign.py")]
    return [*packages, *map(Path, files)]


def copy_images(root: Path, source: Path, dataset: str) -> Path:
    """Copy the verified file of a dataset; prepare it if needed."""
    sys.path.insert(0, str(PROJECT))
    from aol.data.datasets import prepare, verified_file

    (root / "verified").mkdir(parents=True)
    prepare(dataset, source)
    return Path(shutil.copy(verified_file(dataset, source), root / "verified"))


def pack(stage: Path, folder: Path, piece_bytes: int) -> list[Path]:
    """Compress the stage into one tar file named after it, cut into pieces; return the pieces."""
    for old in folder.glob(f"{stage.name}-*.part"):
        old.unlink()
    whole = stage.with_suffix(".tar.xz")
    with tarfile.open(whole, "w:xz", preset=XZ_PRESET) as archive:
        archive.add(stage, arcname=".")
    pieces = []
    with whole.open("rb") as file:
        while content := file.read(piece_bytes):
            piece = folder / f"{stage.name}-{len(pieces):02}.part"
            piece.write_bytes(content)
            pieces.append(piece)
            print(f"{piece}  {len(content) / 1e6:.1f} MB")
    return pieces


def list_part(folder: Path, part: str, owns: list[str], pieces: list[Path]) -> None:
    """List a part: the hashes of its pieces, and the paths that it owns where it is unpacked."""
    hashes = {piece.name: hashlib.sha256(piece.read_bytes()).hexdigest() for piece in pieces}
    _write_list(folder, _read_list(folder) | {part: {"pieces": hashes, "owns": owns}})


def remove_other_parts(folder: Path, parts: set[str]) -> None:
    """Remove all other parts, which an earlier call packed, from the list, and their pieces."""
    listed = _read_list(folder)
    for part in set(listed) - parts:
        for piece in listed.pop(part)["pieces"]:
            (folder / piece).unlink(missing_ok=True)
    _write_list(folder, listed)


def _read_list(folder: Path) -> dict[str, Any]:
    file = folder / "parts.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _write_list(folder: Path, parts: dict[str, Any]) -> None:
    part = folder / "parts.json.part"
    part.write_text(json.dumps(parts, indent=1), encoding="utf-8")
    part.replace(folder / "parts.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="folder of the pieces")
    add("--spec", type=Path, default=PROJECT / "experiments.yaml")
    add("--profile", default="paper")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `plan`")
    add("--data", type=Path, required=True, help="the data root")
    add("--wheels", type=Path, help="a folder of wheels to pack")
    add("--only", action="append", metavar="PART", help="pack only this part: code, cifar10, ...")
    add("--piece-bytes", type=int, default=PIECE_BYTES)
    return parser


if __name__ == "__main__":
    sys.exit(main())
