"""
Passwords in the options and the environment are in no output, no file and no database.
"""

import re
import subprocess
import sys

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.shell import Shell

SECRET = "hunter2"
REFUSED = f"postgresql://u:a%2F{SECRET}@127.0.0.1:9/db?password={SECRET}"
SERVER = f"http://user:{SECRET}@127.0.0.1:9"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--store", REFUSED], 1),
        (["plan", f"--store={REFUSED}"], 1),
        (["merge", REFUSED], 1),
        (["merge", "a.db", REFUSED], 2),
        (["status", "--store", f"postgresql://u:{SECRET}"], 1),
        (["run", "--dry-run", "--storage", f"s3://key:{SECRET}@bucket/x"], 2),
        (["run", "--dry-run", "--storage", f"s3://bucket/x?secret_key={SECRET}"], 2),
        (["plan", "--storage", f"s3://key:{SECRET}@bucket/x"], 2),
        (["status", f"http://u:{SECRET}@h"], 2),
    ],
)
def test_an_error_has_no_password(tmp_path, data_root, arguments, code):
    shell = Shell(tmp_path, data_root)

    done = shell(*arguments)

    assert done.returncode == code, done.stderr
    assert done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_a_failure_of_mlflow_has_no_password(trained, tmp_path):
    shell = trained.copy(tmp_path)
    shell.environment |= {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

    done = shell.process("sync")

    assert done.returncode == 1
    assert "MLflow at http://***@127.0.0.1:9" in done.stderr
    assert SECRET not in done.stderr


def test_the_store_can_be_chosen_by_an_environment_variable(trained, tmp_path):
    shell = trained.copy(tmp_path)
    (tmp_path / "results/store.db").rename(tmp_path / "moved.db")
    shell.environment |= {"AOL_STORE": str(tmp_path / "moved.db")}

    assert shell("status").returncode == 0
    assert "--store" not in shell("explain", "0").stdout
    assert shell("status", "--store", "other.db").returncode == 1
    empty = shell("status", "--store", "")
    assert (empty.returncode, "set AOL_STORE" in empty.stderr) == (2, True)


@pytest.mark.slow
def test_a_run_leaves_no_password_anywhere(tmp_path, data_root, schema):
    shell = Shell(tmp_path, data_root)
    shell.environment |= {"MLFLOW_TRACKING_URI": SERVER, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    url = make_url(schema).set(password=f"a/{SECRET}@")
    store = url.render_as_string(hide_password=False)

    done = shell.process("run", "--profile", "demo", "--store", store, "--verbose")

    assert done.returncode == 1, done.stderr  # MLflow is unreachable
    (command,) = re.findall(r"^Print them: \S+ (.*)$", done.stderr, re.MULTILINE)
    printed = subprocess.run(
        f"{sys.executable} {command}",
        shell=True,
        check=True,
        cwd=tmp_path,
        env=shell.environment | {"AOL_STORE": store},
        capture_output=True,
        text=True,
    )
    with psycopg.connect(schema) as connection:
        rows = connection.execute("SELECT r::text FROM runs r").fetchall()
    assert '--store "$AOL_STORE"' in command
    assert "The only table" in printed.stdout
    assert len(rows) == 2
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert "driver.log" in {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr + printed.stderr + str(rows)
