"""Which source results come from: the commit of its checkout, and what differs from it."""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

PACKED = Path(__file__).parent / "checkout.json"  # in source that was packed without its history
CODE = (":(top)", ":(top,exclude)results")  # generated tables change no result
LONGEST_DIFF = 1_000_000  # characters


@dataclass(frozen=True)
class Checkout:
    """A commit, with "+changes" if files differ from it, and these differences as a patch.

    A patch of more than `LONGEST_DIFF` characters is left out.
    """

    commit: str | None = None
    diff: str | None = None

    def as_json(self) -> str:
        """What a packed source says of itself in `PACKED`."""
        return json.dumps(asdict(self))


def checkout() -> Checkout:
    """The checkout of this program, or what it was packed from; nothing is known outside git."""
    if PACKED.exists():
        return Checkout(**json.loads(PACKED.read_text(encoding="utf-8")))
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # not just around us
        commit = _git(here.parent, "rev-parse", "HEAD").strip()
        diff = _git(here.parent, "diff", "--binary", "HEAD", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return Checkout()
    if not diff:
        return Checkout(commit)
    return Checkout(f"{commit}+changes", diff if len(diff) <= LONGEST_DIFF else None)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, timeout=10
    )
    return done.stdout.decode("utf-8", "replace")  # as text it would lose its carriage returns
