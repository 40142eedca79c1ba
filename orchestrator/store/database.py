"""Opens the database of the result store and brings its schema up to date."""

import re
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, event, inspect, text
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

REVISION = "0002"  # the newest migration
BUSY_TIMEOUT_S = 30


class StoreError(Exception):
    """The database cannot be used: which one, why, and what to do."""

    exit_code = 1


def store_url(location: str | Path) -> str:
    """The SQLAlchemy URL of a path or URL. Raises: StoreError."""
    if isinstance(location, Path) or "://" not in location:
        return f"sqlite:///{Path(location).expanduser().absolute()}"
    hidden = re.sub(r"(?<=:)[^:@/]+(?=@)", "***", location)  # no password in a message
    try:
        backend = make_url(location).get_backend_name()
    except (ArgumentError, ValueError) as error:
        reason = str(error).replace(location, hidden)
        raise StoreError(f"--store {hidden}: is no database URL: {reason}") from error
    if backend not in ("sqlite", "postgresql"):
        raise StoreError(f"--store {hidden}: {backend} is not offered; use sqlite or postgresql")
    return location


def open_engine(url: str) -> Engine:
    """Connections to the database, SQLite in WAL mode. Raises: StoreError."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return create_engine(url)
        if parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    except (OSError, ModuleNotFoundError, NoSuchModuleError) as error:
        raise StoreError(unusable(url, error)) from error

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema to `REVISION`; alembic is imported only if there is something to do.

    Raises: StoreError if the schema is newer than this program.
    """
    if inspect(engine).has_table("alembic_version"):
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if found == REVISION:
            return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StoreError(
                f"{engine.url}: was written by a newer version of this program ({error}); "
                "update the program or choose another --store"
            ) from error


def unusable(url: str, error: Exception) -> str:
    """One line about a database that cannot be used; no password in it."""
    cause = getattr(error, "orig", None) or error
    shown = make_url(url).render_as_string(hide_password=True)
    return f"the store {shown} cannot be used: {cause}; repair it, or choose another with --store"
