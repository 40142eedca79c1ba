"""A bundle as a file: a zip whose manifest has the size and SHA-256 of every other file in it.

What is read may come from anybody: no name leads out of the folder that it is unpacked into, and
what it unpacks to is bounded.
"""

import json
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

from aol.provenance import file_sha256
from orchestrator.errors import BundleError, OutputError
from orchestrator.formatting import pluralize

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 10 * 2**20
UNPACKED_LIMIT = 4 * 2**30  # bytes
FILES_LIMIT = 10_000
CHUNK = 2**20
TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: the same files are the same bytes
PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
NAME = re.compile(rf"{PART}(/{PART})*")
DAMAGES = (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)  # what zips raise


def printable(text: str) -> str:
    """A text with escapes in place of what would start a line or move a terminal's cursor."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _printable_only(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("printable", "is damaged: has characters that cannot be printed")
    return text


Line = Annotated[str, AfterValidator(_printable_only)]  # of text, which people are shown


class Entry(BaseModel):
    """A file of the bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """What is in the bundle, and what made it.

    `settings` were laid over the profile, as with --set; `program` is the version that wrote it.
    A change that a reader would stumble over is another `version`.
    """

    format: Literal["aol-bundle"] = "aol-bundle"
    version: Literal[1] = 1
    experiment: Line
    profile: Line
    settings: tuple[Line, ...]
    program: Line
    commit: Line | None
    created_at: Line
    files: dict[str, Entry]


@dataclass(frozen=True)
class UnpackedBundle:
    """A bundle's files in a folder, and a line for each that is not as the manifest says."""

    folder: Path
    manifest: Manifest
    problems: tuple[str, ...]


def list_entries(folder: Path) -> dict[str, Entry]:
    """What the manifest says of the files below a folder. Raises: OSError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): Entry(
            sha256=file_sha256(path), size=path.stat().st_size
        )
        for path in paths
    }


def make_manifest(target: Path, **facts: Any) -> Manifest:
    """The manifest of a bundle to be. Raises: BundleError if nobody could be shown it."""
    try:
        return Manifest(**facts)
    except ValidationError as error:
        raise BundleError(f"{target}: cannot be made: {_first_mistake(error)}") from error


def pack_bundle(folder: Path, manifest: Manifest, target: Path) -> None:
    """Write the zip: the manifest, then its files by name. Raises: OSError."""
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        archive.writestr(_info(MANIFEST), f"{manifest.model_dump_json(indent=2)}\n")
        for name, entry in sorted(manifest.files.items()):
            info = _info(name)
            info.file_size = entry.size
            with (folder / name).open("rb") as source, archive.open(info, "w") as sink:
                shutil.copyfileobj(source, sink, CHUNK)


@contextmanager
def unpack_bundle(file: Path) -> Iterator[UnpackedBundle]:
    """The files of a bundle, until the block ends. Raises: BundleError, OutputError."""
    if not file.is_file():
        raise BundleError(f"{file}: no such file")
    with TemporaryDirectory(prefix="aol-bundle-") as folder:
        try:
            with ZipFile(file) as archive:
                found = _unpack(file, archive, Path(folder))
        except DAMAGES as error:
            raise BundleError(f"{file}: is no zip file, or a damaged one: {error}") from error
        except OSError as error:
            reason = error.strerror or error
            place = Path(folder).parent  # ours in it is gone by now
            raise OutputError(f"{file}: cannot be unpacked in {place}: {reason}") from error
        yield found


def _info(name: str) -> ZipInfo:
    info = ZipInfo(name, TIME)
    info.compress_type = ZIP_DEFLATED
    info.create_system = 3  # Unix, wherever it is made
    info.external_attr = 0o644 << 16
    return info


def _unpack(file: Path, archive: ZipFile, folder: Path) -> UnpackedBundle:
    infos = archive.infolist()
    if len(infos) > FILES_LIMIT:
        raise BundleError(f"{file}: has {len(infos)} files; {FILES_LIMIT} are allowed")
    if (size := sum(info.file_size for info in infos)) > UNPACKED_LIMIT:
        raise BundleError(f"{file}: unpacks to {size} bytes; {UNPACKED_LIMIT} are allowed")
    manifest = _manifest(file, archive)
    problems = []
    for name, count in Counter(info.filename for info in infos).items():
        if name == MANIFEST and count == 1:
            continue
        if not NAME.fullmatch(name):
            problems.append(f"{name!r} is no name for a file of a bundle; it is not unpacked")
        elif count > 1:
            problems.append(f"{name}: is there {count} times; it is not unpacked")
        elif name not in manifest.files:
            problems.append(f"{name}: is in the zip and not in the manifest")
        else:
            problems += _unpack_file(archive, name, manifest.files[name], folder / name)
    there = {info.filename for info in infos}
    missing = [f"{name}: is missing" for name in manifest.files if name not in there]
    return UnpackedBundle(folder, manifest, (*problems, *missing))


def _unpack_file(archive: ZipFile, name: str, entry: Entry, target: Path) -> Iterator[str]:
    """Write one file, and say what is wrong with it. Raises: OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(name) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, CHUNK)  # no more than the zip's directory declares
    except DAMAGES as error:
        target.unlink(missing_ok=True)
        yield f"{name}: cannot be unpacked: {error}"
        return
    if target.stat().st_size != entry.size:
        size = pluralize(target.stat().st_size, "byte")
        yield f"{name}: has {size}, the manifest says {entry.size:,}"
    elif (found := file_sha256(target)) != entry.sha256:
        yield f"{name}: its SHA-256 is {found}, the manifest says {entry.sha256}"


def _first_mistake(error: ValidationError) -> str:
    """The first of what is wrong with a manifest: where, what and what was there."""
    first = error.errors()[0]
    where = printable(".".join(map(str, first["loc"])))
    got = first["input"] if isinstance(first["input"], str | int) else "something else"
    return f"{where}: {first['msg']}, got {got!r}"


def _manifest(file: Path, archive: ZipFile) -> Manifest:
    """Raises: BundleError."""
    try:
        if archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
            raise BundleError(f"{file}: {MANIFEST} is larger than {MANIFEST_LIMIT} bytes")
        content = json.loads(archive.read(MANIFEST))
        return Manifest.model_validate(content)
    except KeyError:
        raise BundleError(f"{file}: has no {MANIFEST}; `bundle` makes zips that do") from None
    except ValidationError as error:
        raise BundleError(f"{file}: {MANIFEST}: {_first_mistake(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file}: {MANIFEST} is damaged: {error}") from error
