"""Databases and processes for the tests of the store."""

import os
import subprocess
import sys
import textwrap
from contextlib import contextmanager

from alembic.config import Config
from sqlalchemy import create_engine, event

from orchestrator.provenance import Provenance
from tests.support.shell import PROJECT

ORIGIN = Provenance(git_commit="abc", packages={"torch": "2.0"}, data_fingerprint="d-d")


@contextmanager
def recorded_statements(store):
    """
    Yield a list that receives each statement which the store sends in the block, with its values.
    """
    sent = []

    def record(*given):
        sent.append(given[2:4])

    event.listen(store.engine, "before_cursor_execute", record)
    yield sent
    event.remove(store.engine, "before_cursor_execute", record)


def migrate(path, direction, revision):
    """
    Upgrade or downgrade the schema of a SQLite store to a revision, without the program.
    """
    config = Config()
    folder = PROJECT / "orchestrator" / "store" / "migrations"
    config.set_main_option("script_location", str(folder))
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        direction(config, revision)
    engine.dispose()


def spawn(script, *arguments, **environment):
    """
    Start a Python process that runs `script` with the project on its path.
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": path} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
