"""A PostgreSQL server of Debian's package, in a temporary folder."""

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import create_engine, make_url, text

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=Path("-")).parent
INSTALLED = (PROGRAMS / "initdb").exists()
REASON = "PostgreSQL is not installed: apt-get install postgresql"
SETTINGS = "-c listen_addresses='' -c fsync=off"


class PostgresServer:
    """A server that is reached through a socket in its folder."""

    def __init__(self, folder):
        self.folder = folder
        self.url = f"postgresql://aol@/postgres?host={folder}"
        self.user = "postgres" if os.geteuid() == 0 else None  # initdb refuses to run as root
        if self.user:
            shutil.chown(folder, self.user)
        options = ("--auth=trust", "--username=aol", "--locale=C", "--encoding=UTF8", "--no-sync")
        self._call("initdb", "--pgdata=data", *options)

    def start(self):
        options = f"{SETTINGS} -k {self.folder}"
        self._call("pg_ctl", "--pgdata=data", "--log=log", f"--options={options}", "start")

    def stop(self, mode="immediate"):
        self._call("pg_ctl", "--pgdata=data", f"--mode={mode}", "stop")

    def restart(self):
        """
        Restart as after a crash: every connection breaks, and every lock is lost.
        """
        self.stop()
        self.start()

    @contextmanager
    def schema(self):
        """
        Yield the URL of an empty schema that is dropped afterwards.
        """
        name = f"test_{uuid4().hex}"
        engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"))
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        engine.dispose()
        yield f"{self.url}&options=-csearch_path%3D{name}"
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
        engine.dispose()

    def _call(self, program, *arguments):
        command = [PROGRAMS / program, *arguments]
        subprocess.run(
            command,
            check=True,
            cwd=self.folder,
            user=self.user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )


@contextmanager
def postgres_server():
    """
    Yield a running server, which is stopped and deleted afterwards.
    """
    folder = tempfile.mkdtemp(prefix="pg-")  # a short path, for the socket
    server = PostgresServer(folder)
    try:
        server.start()
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder)
