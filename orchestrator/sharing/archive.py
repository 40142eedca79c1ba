"""The bundle as a file: a zip whose manifest has the size and SHA-256 of every other file in it.

Bundles are untrusted: no name leads out of the folder that a bundle is unpacked into, and the
number of files, their sizes and how well they are compressed are limited.
"""

import os
import re
import shutil
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Annotated, Any, Literal
from zipfile import ZIP_DEFLATED, BadZipFile, ZipFile, ZipInfo

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import PydanticCustomError

from aol.provenance import file_sha256
from aol.reading import parse_json
from aol.text import is_one_line, printable
from orchestrator.errors import BundleError, OutputError
from orchestrator.formatting import pluralize

SUFFIX = ".zip"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 10 * 2**20  # bytes
BUNDLE_LIMIT = 2 * 2**30  # bytes
UNPACKED_LIMIT = 4 * 2**30  # bytes
RATIO_LIMIT = 200  # of the unpacked size to the size of the bundle
DIRECTORY_LIMIT = 16 * 2**20  # bytes of the zip's list of files
ZIP_END = struct.Struct("<4s4H2LH")  # the last bytes of a zip without a comment
ZIP64_LOCATOR = struct.Struct("<4sLQL")  # before them if the list is longer than they can say
FILES_LIMIT = 50_000
CHUNK_BYTES = 2**20
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same in every bundle: the same files are the same bytes
NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
FILE_NAME = re.compile(rf"{NAME_PART}(/{NAME_PART})*")
CORRUPT_ZIP_ERRORS = (BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def _require_printable(text: str) -> str:
    if not is_one_line(text):
        raise PydanticCustomError("printable", "must have only printable characters")
    return text


PrintableText = Annotated[str, AfterValidator(_require_printable)]


class Entry(BaseModel):
    """A file of the bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """The contents and the origin of a bundle.

    `settings` override the profile, as with --set; `program` is the version that wrote the bundle.
    An incompatible change of the format needs another `version`.
    """

    format: Literal["aol-bundle"] = "aol-bundle"
    version: Literal[1] = 1
    experiment: PrintableText
    profile: PrintableText
    settings: tuple[PrintableText, ...]
    program: PrintableText
    commit: PrintableText | None
    created_at: PrintableText
    files: dict[str, Entry]


@dataclass(frozen=True)
class UnpackedBundle:
    """A bundle's files in a folder, and a line for each that contradicts the manifest."""

    folder: Path
    manifest: Manifest
    problems: tuple[str, ...]


def list_entries(folder: Path) -> dict[str, Entry]:
    """Return the manifest's entries for the files in a folder. Raises: OSError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): Entry(
            sha256=file_sha256(path), size=path.stat().st_size
        )
        for path in paths
    }


def make_manifest(target: Path, **facts: Any) -> Manifest:
    """Return the manifest of a new bundle.

    Raises: BundleError if it is not valid, or if the bundle would be too large to be unpacked.
    """
    try:
        manifest = Manifest(**facts)
    except ValidationError as error:
        raise BundleError(f"{target}: cannot be written: {_first_error(error)}") from error
    _check_limits(target, [entry.size for entry in manifest.files.values()])
    return manifest


def _check_limits(file: Path, sizes: Sequence[int]) -> None:
    """Raise BundleError if there are too many files, or too many bytes in them."""
    if len(sizes) > FILES_LIMIT:
        raise BundleError(f"{file}: has {len(sizes)} files; {FILES_LIMIT} are allowed")
    if (size := sum(sizes)) > UNPACKED_LIMIT:
        raise BundleError(f"{file}: unpacks to {size} bytes; {UNPACKED_LIMIT} are allowed")


def pack_bundle(folder: Path, manifest: Manifest, target: Path) -> None:
    """Write the zip: the manifest, then the files by name. Raises: OSError."""
    with ZipFile(target, "w", ZIP_DEFLATED) as archive:
        archive.writestr(_zip_info(MANIFEST), f"{manifest.model_dump_json(indent=2)}\n")
        for name, entry in sorted(manifest.files.items()):
            info = _zip_info(name)
            info.file_size = entry.size
            with (folder / name).open("rb") as source, archive.open(info, "w") as sink:
                shutil.copyfileobj(source, sink, CHUNK_BYTES)


@contextmanager
def unpack_bundle(file: Path) -> Iterator[UnpackedBundle]:
    """Unpack a bundle for the length of the block. Raises: BundleError, OutputError."""
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(_open(file))
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="aol-bundle-")))
            found = _unpack(file, archive, folder)
        except CORRUPT_ZIP_ERRORS as error:
            raise BundleError(f"{file}: is not a zip file, or is damaged: {error}") from error
        except OSError as error:
            place = tempfile.tempdir or "the system's temporary folder"
            reason = error.strerror or error
            raise OutputError(f"{file}: cannot be unpacked in {place}: {reason}") from error
        yield found


def _open(file: Path) -> ZipFile:
    try:
        if file.is_file():
            _check_size_and_directory(file)
            return ZipFile(file)
    except OSError as error:
        raise _unreadable(file, error) from error
    raise BundleError(f"{file}: no such file")


def _check_size_and_directory(file: Path) -> None:
    """Raise BundleError if a zip or its list of files, which `ZipFile` reads, is too large."""
    length = ZIP64_LOCATOR.size + ZIP_END.size
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - length))
        end = stream.read(length).rjust(length, b"\0")
    if size > BUNDLE_LIMIT:
        raise BundleError(f"{file}: has {size} bytes; {BUNDLE_LIMIT} are allowed")
    signature, *_, directory, _, _ = ZIP_END.unpack(end[ZIP64_LOCATOR.size :])
    if signature != b"PK\5\6":
        raise BadZipFile("it does not end with a list of its files")
    if end.startswith(b"PK\6\7") or directory > DIRECTORY_LIMIT:
        raise BundleError(f"{file}: its list of files is larger than {DIRECTORY_LIMIT} bytes")


def _unreadable(file: Path | str | None, error: OSError) -> BundleError:
    return BundleError(f"{file}: cannot be read: {error.strerror or error}")


def _zip_info(name: str) -> ZipInfo:
    info = ZipInfo(name, ZIP_TIME)
    info.compress_type = ZIP_DEFLATED
    info.create_system = 3  # Unix, on every system
    info.external_attr = 0o644 << 16
    return info


def _unpack(file: Path, archive: ZipFile, folder: Path) -> UnpackedBundle:
    infos = archive.infolist()
    _check_limits(file, [info.file_size for info in infos])
    allowed = RATIO_LIMIT * file.stat().st_size
    if (size := sum(info.file_size for info in infos)) > allowed:
        raise BundleError(f"{file}: unpacks to {size} bytes; {allowed} are allowed")
    manifest = _read_manifest(file, archive)
    problems = []
    for name, count in Counter(info.filename for info in infos).items():
        if name == MANIFEST and count == 1:
            continue
        if not FILE_NAME.fullmatch(name):
            problems.append(f"{name!r}: is not a valid name in a bundle; not unpacked")
        elif count > 1:
            problems.append(f"{name}: occurs {count} times; not unpacked")
        elif name not in manifest.files:
            problems.append(f"{name}: is in the zip but not in the manifest")
        else:
            problems += _unpack_file(archive, name, manifest.files[name], folder / name)
    names = {info.filename for info in infos}
    missing = [f"{name}: is missing" for name in manifest.files if name not in names]
    return UnpackedBundle(folder, manifest, (*problems, *missing))


def _read_manifest(file: Path, archive: ZipFile) -> Manifest:
    try:
        if archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
            raise BundleError(f"{file}: {MANIFEST} is larger than {MANIFEST_LIMIT} bytes")
        content = parse_json(archive.read(MANIFEST))
        return Manifest.model_validate(content)
    except KeyError:
        raise BundleError(f"{file}: has no {MANIFEST}; pass a file that `bundle` wrote") from None
    except ValidationError as error:
        raise BundleError(f"{file}: {MANIFEST}: {_first_error(error)}") from error
    except ValueError as error:
        raise BundleError(f"{file}: {MANIFEST} is damaged: {error}") from error


def _unpack_file(archive: ZipFile, name: str, entry: Entry, target: Path) -> Iterator[str]:
    """Unpack one file and yield a line if it is damaged. Raises: BundleError, OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(name) as source, target.open("wb") as sink:
            sink.writelines(_read_chunks(archive, source))
    except CORRUPT_ZIP_ERRORS as error:
        target.unlink(missing_ok=True)
        yield f"{name}: cannot be unpacked: {error}"
        return
    if target.stat().st_size != entry.size:
        size = pluralize(target.stat().st_size, "byte")
        yield f"{name}: has {size}, the manifest has {entry.size:,}"
    elif (found := file_sha256(target)) != entry.sha256:
        yield f"{name}: its SHA-256 is {found}, the manifest has {entry.sha256}"


def _read_chunks(archive: ZipFile, source: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a file, at most of the size that the zip declares.

    Raises: BundleError, so that an error of the bundle's disk is not taken for one of the target's.
    """
    try:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise _unreadable(archive.filename, error) from error


def _first_error(error: ValidationError) -> str:
    """Return the first error of a manifest in one line: the field, the rule and the value."""
    first = error.errors()[0]
    field = printable(".".join(map(str, first["loc"])))
    value = first["input"]
    got = f", got {value!r}" if isinstance(value, str | int) else ""
    return f"{field}: {first['msg']}{got}" if field else first["msg"]
