import signal

import pytest

from orchestrator.errors import StoreError
from orchestrator.store import Store
from tests.support.stores import spawn

DRIVER = """
    import sys, time
    from orchestrator.store import Store
    store = Store(sys.argv[1], exclusive=True)
    print("opened", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def driver(location):
    """
    Another process that has the store open as its driver.
    """
    process = spawn(DRIVER, location)
    assert process.stdout.readline() == "opened\n", process.stderr.read()
    yield process
    process.kill()
    process.communicate()


def rejected(location):
    with pytest.raises(StoreError, match="another driver is writing to ") as caught:
        Store(location, exclusive=True)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_second_driver_is_rejected_and_a_reader_is_not(driver, location):
    message = rejected(location)
    reader = Store(location)
    runs = reader.runs()
    reader.close()

    assert "wait for it (`status` shows it), or choose another --store" in message
    assert runs == []


def test_the_lock_of_a_killed_driver_is_released(driver, location):
    rejected(location)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    store = Store(location, exclusive=True)
    rejected(location)
    store.close()


def test_closing_releases_the_lock(location):
    Store(location, exclusive=True).close()
    Store(location, exclusive=True).close()


def test_the_lock_is_taken_before_the_schema_is_upgraded(tmp_path):
    """
    A second driver of a newer version must not change the schema while the first one runs.
    """
    first = Store(tmp_path / "store.db", exclusive=True)
    with first.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE margins")
        connection.exec_driver_sql("DROP TABLE alembic_version")
    rejected(tmp_path / "store.db")
    with first.engine.begin() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master").scalars().all()
    first.close()

    assert "margins" not in tables
    assert "alembic_version" not in tables


def test_a_failure_to_open_the_store_releases_the_lock(tmp_path):
    (tmp_path / "store.db").write_text("no database at all\n" * 100)
    for _ in range(2):
        with pytest.raises(StoreError, match="file is not a database"):
            Store(tmp_path / "store.db", exclusive=True)


def test_two_schemas_of_one_database_are_two_stores(postgresql, schema):
    with postgresql.schema() as other:
        stores = [Store(url, exclusive=True) for url in (schema, other)]
        for store in stores:
            store.close()


def test_a_link_to_a_store_has_the_lock_of_the_store(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "folder" / "store.db")
    (tmp_path / "linked").symlink_to(tmp_path / "folder")
    store = Store(tmp_path / "link.db", exclusive=True)

    for name in ("folder/store.db", "link.db", "linked/store.db"):
        rejected(tmp_path / name)
        rejected(f"sqlite:///{tmp_path / name}")
    store.close()
    assert not (tmp_path / "link.db.lock").exists()
