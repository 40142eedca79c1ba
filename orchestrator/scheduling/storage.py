"""Locations in a storage: paths of a shared folder, or URIs with their host and query."""

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
    """Whether it is a URI and not a path."""
    return "://" in location


def absolute_location(storage: str) -> str:
    """The storage as it can be opened from any folder."""
    return storage if is_uri(storage) else str(Path(storage).expanduser().absolute())


def join_location(location: str, relative: str) -> str:
    """What lies at the relative path below; a URI keeps its host and query (S3's endpoint)."""
    if not is_uri(location):
        return str(PurePosixPath(location) / relative)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{relative}"))


def parent_location(location: str) -> str:
    """The folder around it."""
    if not is_uri(location):
        return str(PurePosixPath(location).parent)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=str(PurePosixPath(parts.path).parent)))


def check_storage(storage: str) -> None:
    """Write into the storage and remove it again. Raises: ResourceError if that cannot be."""
    with _marker(storage):
        pass


@contextmanager
def _marker(storage: str) -> Iterator[str]:
    """The path of a new file in the storage. Raises: ResourceError."""
    try:
        system, root = open_location(storage)
        name = f"{root}/.seen-{uuid4().hex}"
        system.create_dir(root, recursive=True)
        system.open_output_stream(name).close()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"--storage {storage}: nothing can be written there: {error}"
        ) from error
    try:
        yield name
    finally:
        system.delete_file(name)


def open_location(location: str) -> tuple[Any, str]:
    """The file system of a path or URI, and the path in it. Raises: OSError, ValueError."""
    from pyarrow.fs import FileSystem

    place = location if is_uri(location) else absolute_location(location)
    system, path = FileSystem.from_uri(place)
    return system, path


def open_checkpoint(place: str) -> AbstractContextManager[str]:
    """A checkpoint's folder on this machine, from a path or URI. Raises anything, as Ray does."""
    from ray import tune

    folder: AbstractContextManager[str] = tune.Checkpoint(place).as_directory()
    return folder


def delete_folder(folder: str) -> None:
    """Remove a folder of the storage, a path or URI; one that is gone already is fine."""
    try:
        system, path = open_location(folder)
        system.delete_dir(path)
    except (OSError, ValueError) as error:
        logger.info("%s is not removed: %s", folder, error)
