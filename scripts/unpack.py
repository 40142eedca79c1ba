"""Unpack the pieces of `pack.py`: `python unpack.py PIECES BOX`. Needs only Python.

Call it whenever pieces have arrived. Each part whose pieces are all there is unpacked into BOX and
replaces an older version of it; other files in BOX, such as results, stay. For the other parts the
missing or damaged pieces are printed. Call it again after an interruption.
Exit codes: 0 all parts are in BOX, 75 pieces are missing, 1 pieces are damaged or BOX cannot be
written, 2 PIECES has no list of parts.
"""

import hashlib
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

KEPT = ".parts"  # in the box: a file for each part that it has, and the part being unpacked
MISSING, DAMAGED, USAGE = 75, 1, 2

Part = dict[str, Any]  # {"pieces": hashes by name, "owns": paths in the box that are its own}


def main(pieces: Path, box: Path) -> int:
    """Unpack every complete part; return the exit code."""
    listed = pieces / "parts.json"
    try:
        parts: dict[str, Part] = json.loads(listed.read_text(encoding="utf-8"))
    except OSError as error:
        print(f"{listed}: cannot be read ({error.strerror}): send it", file=sys.stderr)
        return USAGE
    except ValueError:
        print(f"{listed}: damaged, send it again", file=sys.stderr)
        return DAMAGED
    try:
        return max(
            (unpack_if_complete(name, part, pieces, box) for name, part in parts.items()),
            key=_severity,
        )
    except OSError as error:
        print(f"{box}: cannot be written: {error}", file=sys.stderr)
        return DAMAGED


def _severity(code: int) -> int:
    return (0, MISSING, DAMAGED).index(code)


def unpack_if_complete(name: str, part: Part, pieces: Path, box: Path) -> int:
    """Unpack one part unless the box has it, and print the result; return the exit code."""
    if is_unpacked(name, part, box):
        print(f"{name}: there already")
        return 0
    files = {pieces / piece: expected for piece, expected in part["pieces"].items()}
    missing = [file for file in files if not file.exists()]
    damaged = [file for file in files if file not in missing and _hash(file) != files[file]]
    if damaged:
        print(f"{name}: damaged or of another pack, send again: {_names(damaged)}", file=sys.stderr)
        return DAMAGED
    if missing:
        print(f"{name}: still missing: {_names(missing)}", file=sys.stderr)
        return MISSING
    unpack(name, part, list(files), box)
    print(f"{name}: unpacked into {box}")
    return 0


def is_unpacked(name: str, part: Part, box: Path) -> bool:
    """Return whether the box has this version of a part."""
    return _read_note(box, name) == part and all((box / path).exists() for path in part["owns"])


def unpack(name: str, part: Part, files: list[Path], box: Path) -> None:
    """Put a part into the box. The note is written last: an interrupted part is unpacked again."""
    note, stage = box / KEPT / f"{name}.json", box / KEPT / name
    former = _read_note(box, name) or {"owns": []}
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(parents=True)
    extract(files, stage)
    note.unlink(missing_ok=True)
    for path in sorted({*former["owns"], *part["owns"]}):
        remove(box / path)
    for path in part["owns"]:
        (box / path).parent.mkdir(parents=True, exist_ok=True)
        (stage / path).replace(box / path)
    shutil.rmtree(stage)
    new_note = note.with_suffix(".part")
    new_note.write_text(json.dumps(part), encoding="utf-8")
    new_note.replace(note)


def extract(files: list[Path], stage: Path) -> None:
    """Extract a tar file that was cut into pieces."""
    whole = stage / ".whole"
    with whole.open("wb") as joined:
        for file in files:
            joined.write(file.read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(stage, filter="data")
    whole.unlink()


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_note(box: Path, name: str) -> Part | None:
    try:
        found: Part = json.loads((box / KEPT / f"{name}.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _names(files: list[Path]) -> str:
    return " ".join(file.name for file in files)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
