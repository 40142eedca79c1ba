"""Checks of a SQLite file's schema, so that no SQL of its author runs when its tables are read."""

from sqlalchemy import Table, text
from sqlalchemy.engine import Connection, Engine

from orchestrator.store.columns import DamagedValueError
from orchestrator.store.models import Base

SCHEMA = text("SELECT type, name, sql FROM sqlite_master")


def require_tables(engine: Engine) -> None:
    """Raise DamagedValueError if one of the store's tables is a view or a virtual table."""
    if engine.dialect.name != "sqlite":
        return
    tables = {*Base.metadata.tables, "alembic_version"}
    with engine.connect() as connection:
        for kind, name, sql in connection.execute(SCHEMA):
            is_other = kind == "view" or str(sql).casefold().startswith("create virtual")
            if is_other and str(name).casefold() in tables:
                raise DamagedValueError(f"`{name}` is a view or a virtual table, not a table")


def require_columns(engine: Engine) -> None:
    """Raise DamagedValueError if the schema differs from the newest one in more than indexes.

    Other tables and views than those of the store are allowed, but no triggers.
    """
    with engine.connect() as connection:
        for kind, name, _ in connection.execute(SCHEMA):
            if kind == "trigger":
                raise DamagedValueError(f"it has the trigger `{name}`; a store has none")
        for table in Base.metadata.sorted_tables:
            _require_columns(connection, table)


def _require_columns(connection: Connection, table: Table) -> None:
    rows = connection.exec_driver_sql(f'PRAGMA table_xinfo("{table.name}")')
    found = {row.name: (bool(row.notnull), bool(row.pk), row.hidden) for row in rows}
    expected = {one.name: (not one.nullable, one.primary_key, 0) for one in table.columns}
    if found != expected:
        raise DamagedValueError(f"the columns of the table `{table.name}` are not those of a store")
