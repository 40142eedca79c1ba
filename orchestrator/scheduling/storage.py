"""Locations in the storage of checkpoints: paths of a shared folder, or URIs."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from aol.training.checkpoints import checksum_file, checksum_line, write_state
from orchestrator.errors import ResourceError
from orchestrator.store import Checkpoint

logger = logging.getLogger(__name__)

CHECKPOINTS = "ray"  # folder of the results that is the storage by default
STATE_FILE, RESULT_FILE = "state.pt", "result.json"
# An invocation, in it a run by its key, and in it a checkpoint
SAVED = re.compile(r"(?<=/)\d{8}-\d{6}-\d+/\d+-s\d+-[0-9a-f]{8}(/checkpoint_\d+(-[0-9a-f]{8})?)?$")


def is_uri(location: str) -> bool:
    """Return whether the location is a URI and not a path."""
    return "://" in location


def absolute_location(storage: str) -> str:
    """Return the storage as a URI or absolute path."""
    return storage if is_uri(storage) else str(Path(storage).expanduser().absolute())


def join_location(location: str, relative: str) -> str:
    """Return the location of a relative path; a URI keeps its host and query (S3's endpoint)."""
    if not is_uri(location):
        return str(PurePosixPath(location) / relative)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{relative}"))


def parent_location(location: str) -> str:
    """Return the location of the enclosing folder."""
    if not is_uri(location):
        return str(PurePosixPath(location).parent)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=str(PurePosixPath(parts.path).parent)))


def check_storage(storage: str) -> None:
    """Raise ResourceError if no file can be written to the storage."""
    with probe_file(storage):
        pass


@contextmanager
def probe_file(storage: str) -> Iterator[str]:
    """Create a file in the storage for the length of the block; yield its path.

    Raises: ResourceError.
    """
    try:
        system, root = open_location(storage)
        name = f"{root}/.seen-{uuid4().hex}"
        system.create_dir(root, recursive=True)
        system.open_output_stream(name).close()
    except (OSError, ValueError) as error:
        raise ResourceError(f"--storage {storage}: is not writable: {error}") from error
    try:
        yield name
    finally:
        system.delete_file(name)


def open_location(location: str) -> tuple[Any, str]:
    """Return the file system of a location, and the path in it. Raises: OSError, ValueError."""
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(absolute_location(location))
    return system, path


@contextmanager
def open_checkpoint(location: str) -> Iterator[str]:
    """Provide a checkpoint as a local folder inside a block. Raises: OSError, ValueError."""
    from pyarrow.fs import LocalFileSystem, copy_files

    system, path = open_location(location)
    if isinstance(system, LocalFileSystem):
        yield path
        return
    with TemporaryDirectory(prefix="aol-checkpoint-") as folder:
        copy_files(path, folder, source_filesystem=system)
        yield folder


class RunStorage:
    """The folder of the storage to which the workers of a run save, in one invocation."""

    def __init__(self, location: str) -> None:
        self.location = location

    def save_state(self, state: Mapping[str, Any]) -> Checkpoint:
        """Write a trainer's state and its checksum to a new folder. Raises: OSError."""
        epoch = int(state["epoch"])
        name = f"checkpoint_{epoch:06d}-{uuid4().hex[:8]}"  # an epoch may be trained twice
        system, root = open_location(join_location(self.location, name))
        try:
            system.create_dir(root, recursive=True)
            with system.open_output_stream(f"{root}/{STATE_FILE}") as stream:
                checksum = write_state(state, stream)
            with system.open_output_stream(f"{root}/{checksum_file(Path(STATE_FILE))}") as stream:
                stream.write(checksum_line(checksum, STATE_FILE).encode())
        except (OSError, ValueError) as error:
            with suppress(OSError, ValueError):
                system.delete_dir(root)  # a full disk needs the room
            raise OSError(str(error)) from error
        return Checkpoint(epoch, join_location(self.location, name))

    def saved_states(self) -> list[str]:
        """Return the locations of the states there, newest first. Raises: OSError, ValueError."""
        from pyarrow.fs import FileSelector

        system, root = open_location(self.location)
        found = system.get_file_info(FileSelector(root, allow_not_found=True))
        names = sorted((info.base_name for info in found), reverse=True)  # epochs have six digits
        return [join_location(self.location, name) for name in names if name != RESULT_FILE]

    def save_result(self, result: Mapping[str, Any]) -> str:
        """Write the margins and the certificate of a run; return their location.

        They are too large to travel through Tune, which keeps and prints what it receives.

        Raises: OSError, ValueError.
        """
        system, folder = open_location(self.location)
        system.create_dir(folder, recursive=True)
        with system.open_output_stream(f"{folder}/{RESULT_FILE}") as stream:
            stream.write(json.dumps(result).encode())
        return join_location(self.location, RESULT_FILE)


def read_result(location: str) -> dict[str, Any]:
    """Return what `RunStorage.save_result` wrote. Raises: OSError, ValueError."""
    system, path = open_location(location)
    with system.open_input_stream(path) as stream:
        result: dict[str, Any] = json.loads(stream.read())
    return result


class CheckpointStorage:
    """The folder or URI in which an invocation saves; nothing outside it is ever deleted.

    A worker saves to `<invocation>/<run key>/checkpoint_<epoch>-<random>` in it. The store has the
    location at the time of saving, which is another one after the project was copied, moved or
    merged.
    """

    def __init__(self, root: str) -> None:
        self.root = absolute_location(root)

    def locate(self, recorded: str) -> str:
        """Return this storage's own copy of a checkpoint if there is one, else `recorded`."""
        own = self._own(recorded)
        if own is None or own == recorded:
            return recorded
        try:
            system, path = open_location(own)
            return own if _exists(system, path) else recorded
        except (OSError, ValueError):
            return recorded

    def discard(self, recorded: str) -> None:
        """Delete this storage's own copy of a checkpoint, or of all that a run saved.

        What was recorded elsewhere is left. An error is logged, as if it is deleted already.
        """
        own = self._own(recorded)
        if own is None:
            logger.warning("%s is not deleted: it is not a checkpoint", recorded)
            return
        try:
            system, path = open_location(own)
            system.delete_dir(path)
        except (OSError, ValueError) as error:
            logger.info("%s is not deleted: %s", own, error)

    def _own(self, recorded: str) -> str | None:
        """Return where this storage would have what is recorded, None if no run can save there."""
        path = urlsplit(recorded).path if is_uri(recorded) else recorded
        found = SAVED.search(path)
        return join_location(self.root, found[0]) if found else None


def _exists(system: Any, path: str) -> bool:
    from pyarrow.fs import FileType

    return bool(system.get_file_info(path).type != FileType.NotFound)
