import logging
from pathlib import Path

import pytest

from orchestrator.logs import LogFile

FULL = Path("/dev/full")  # every write to it fails as on a full disk


def test_lines_are_in_the_file_before_it_is_closed(tmp_path):
    path = tmp_path / "x.log"
    path.write_text("one\n", encoding="utf-8")
    with LogFile(path) as file:
        print("zwö \udcff", file=file)

        assert path.read_text(encoding="utf-8") == "one\nzwö \\udcff\n"


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_a_full_disk_loses_lines_and_raises_nothing(capsys):
    file = LogFile(FULL)
    handler = logging.StreamHandler(file)
    for number in range(10_000):
        handler.emit(logging.makeLogRecord({"msg": f"line {number}"}))
    file.flush()
    file.close()
    file.close()

    assert capsys.readouterr() == ("", "")


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path):
    with pytest.raises(IsADirectoryError):
        LogFile(tmp_path)
