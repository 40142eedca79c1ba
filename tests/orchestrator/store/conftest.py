import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request, tmp_path):
    """
    Return a location for a store, on every supported database.
    """
    if request.param == "sqlite":
        return str(tmp_path / "results" / "store.db")
    return request.getfixturevalue("schema")
