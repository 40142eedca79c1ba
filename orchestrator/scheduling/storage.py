"""Locations in the storage of checkpoints: paths of a shared folder, or URIs."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from orchestrator.errors import ResourceError

logger = logging.getLogger(__name__)


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


def open_checkpoint(location: str) -> AbstractContextManager[str]:
    """Provide a checkpoint as a local folder inside a block. Ray may raise any exception."""
    from ray import tune

    folder: AbstractContextManager[str] = tune.Checkpoint(location).as_directory()
    return folder


def delete_folder(folder: str) -> None:
    """Delete a folder of the storage; log an error, as if it is deleted already."""
    try:
        system, path = open_location(folder)
        system.delete_dir(path)
    except (OSError, ValueError) as error:
        logger.info("%s is not deleted: %s", folder, error)
