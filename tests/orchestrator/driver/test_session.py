import logging
import warnings
from dataclasses import replace

import pytest

from orchestrator.driver.session import RunOptions, Session
from tests.support.mounts import small_disk
from tests.support.shell import TINY


@pytest.fixture
def options(tmp_path):
    (tmp_path / "experiments.yaml").write_text(TINY, encoding="utf-8")
    return RunOptions(spec=tmp_path / "experiments.yaml")


def test_the_log_has_messages_and_warnings_until_the_session_ends(options):
    root = logging.getLogger()
    before = root.level, root.handlers[:], warnings.showwarning
    with Session(options) as session:
        session.log_to_file()
        logging.getLogger("library").info("a message")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a warning", stacklevel=1)
    logging.getLogger("library").warning("too late")

    log = (session.logs / "driver.log").read_text(encoding="utf-8")
    assert (root.level, root.handlers, warnings.showwarning) == before
    assert "INFO library: a message" in log
    assert "UserWarning: a warning" in log
    assert "too late" not in log


def test_a_log_on_a_full_disk_loses_records_without_a_traceback(tmp_path, options, capsys):
    before = logging.getLogger().handlers[:]
    with (
        small_disk(tmp_path / "small", "64k") as folder,
        Session(replace(options, results=folder)) as session,
    ):
        session.log_to_file()
        for _ in range(100):
            logging.getLogger("library").info("a record\n" * 120)
        size = (session.logs / "driver.log").stat().st_size

    assert 32 * 1024 < size <= 64 * 1024
    assert logging.getLogger().handlers == before
    assert capsys.readouterr().err == ""


def test_a_caller_that_captures_warnings_goes_on_doing_so(options):
    logging.captureWarnings(True)
    shown = warnings.showwarning
    try:
        with Session(options) as session:
            session.log_to_file()
        assert warnings.showwarning is shown
    finally:
        logging.captureWarnings(False)
