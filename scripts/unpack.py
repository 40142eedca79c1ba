"""Unpacks the pieces that `pack.py` made: `python unpack.py DIR TARGET`, with Python alone.

Call it when pieces arrive; it says which are missing or damaged, and unpacks once all are there.
Exit codes: 0 unpacked, 75 pieces are missing, 1 pieces are damaged.
"""

import hashlib
import json
import sys
import tarfile
from pathlib import Path


def main(folder: Path, target: Path) -> int:
    """Check and unpack; returns the exit code."""
    hashes = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
    missing = [name for name in hashes if not (folder / name).exists()]
    damaged = [
        name
        for name, expected in hashes.items()
        if name not in missing
        and hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected
    ]
    if damaged:
        print(f"damaged, send again: {' '.join(damaged)}", file=sys.stderr)
        return 1
    if missing:
        print(f"still missing: {' '.join(missing)}", file=sys.stderr)
        return 75
    whole = folder / "whole.tar.xz"
    with whole.open("wb") as file:
        for name in hashes:
            file.write((folder / name).read_bytes())
    with tarfile.open(whole) as archive:
        archive.extractall(target, filter="data")
    whole.unlink()
    print(f"unpacked into {target}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
