"""Places in a storage: a path of a shared folder, or a URI with all that opening it takes."""

from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit


def is_uri(location: str) -> bool:
    """Whether it is a URI and not a path."""
    return "://" in location


def absolute(storage: str) -> str:
    """The storage as it can be opened from any folder."""
    return storage if is_uri(storage) else str(Path(storage).expanduser().absolute())


def below(location: str, relative: str) -> str:
    """What lies at the relative path below; a URI keeps its host and query (S3's endpoint)."""
    if not is_uri(location):
        return str(PurePosixPath(location) / relative)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{relative}"))


def parent(location: str) -> str:
    """The folder around it."""
    if not is_uri(location):
        return str(PurePosixPath(location).parent)
    parts = urlsplit(location)
    return urlunsplit(parts._replace(path=str(PurePosixPath(parts.path).parent)))
