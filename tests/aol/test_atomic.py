import pytest

from aol.atomic import atomic_path


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with atomic_path(file) as part:
        part.write_text("new")
        before = file.read_text()

    assert (before, file.read_text()) == ("old", "new")
    assert (part.parent, part.suffix) == (tmp_path, ".json")
    assert list(tmp_path.iterdir()) == [file]


def torn(file):
    with atomic_path(file) as part:
        part.write_text("ne")
        raise ZeroDivisionError


def test_a_failed_write_keeps_the_old_file_and_leaves_no_part(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")

    with pytest.raises(ZeroDivisionError):
        torn(file)

    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x"):
        pass
