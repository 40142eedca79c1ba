import pytest
from pyarrow.fs import FileSystem

from orchestrator.errors import ResourceError
from orchestrator.scheduling.storage import (
    CheckpointStorage,
    absolute_location,
    check_storage,
    is_uri,
    join_location,
    parent_location,
)

S3 = "s3://key:secret@bucket/runs?scheme=http&endpoint_override=127.0.0.1:9000/x&region=a"


@pytest.mark.parametrize(
    ("storage", "inside"),
    [
        ("/shared/aol", "/shared/aol/a/b"),
        ("/shared/aol/", "/shared/aol/a/b"),
        ("file:///shared/aol", "file:///shared/aol/a/b"),
        ("hdfs://host:8020/aol/", "hdfs://host:8020/aol/a/b"),
        ("gs://bucket", "gs://bucket/a/b"),
        (S3, S3.replace("/runs?", "/runs/a/b?")),
    ],
)
def test_joined_locations_are_of_the_same_kind(storage, inside):
    assert join_location(storage, "a/b") == inside
    assert parent_location(inside) == join_location(storage, "a")


def test_a_joined_location_in_s3_keeps_its_endpoint():
    system, path = FileSystem.from_uri(join_location(S3.replace("/x&", "&"), "a/b"))

    assert system.type_name == "s3"
    assert path == "bucket/runs/a/b"


def test_a_path_is_made_absolute_and_a_uri_is_unchanged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")

    assert absolute_location("ray") == str(tmp_path / "ray")
    assert absolute_location("~/ray") == "/home/ada/ray"
    assert absolute_location(S3) == S3
    assert [is_uri(text) for text in ("ray", "/ray", S3)] == [False, False, True]


SAVED = "20260101-000000-7/0-s0-0123abcd/checkpoint_000003"


@pytest.fixture(params=["{}", "file://{}"], ids=["path", "uri"])
def places(request, tmp_path):
    """
    Return the roots of two storages, with one checkpoint of the same name in each.
    """
    roots = []
    for name in ("original", "copy"):
        place = tmp_path / name / SAVED
        place.mkdir(parents=True)
        (place / "state.pt").write_text(name, encoding="utf-8")
        roots.append(request.param.format(tmp_path / name))
    return roots


def states(tmp_path):
    return sorted(path.read_text(encoding="utf-8") for path in tmp_path.rglob("state.pt"))


def test_a_copied_project_reads_its_own_checkpoints(places):
    original, copy = places

    assert CheckpointStorage(copy).locate(f"{original}/{SAVED}") == f"{copy}/{SAVED}"
    assert CheckpointStorage(original).locate(f"{original}/{SAVED}") == f"{original}/{SAVED}"


def test_a_checkpoint_of_another_store_is_read_where_it_is(places, tmp_path):
    original, _ = places
    own = CheckpointStorage(str(tmp_path / "own"))

    assert own.locate(f"{original}/{SAVED}") == f"{original}/{SAVED}"
    assert own.locate("nothing://there/a/b/checkpoint_000001").startswith("nothing://there/")


@pytest.mark.parametrize("what", [SAVED, SAVED.rpartition("/")[0]], ids=["checkpoint", "folder"])
def test_a_copied_project_deletes_its_own_checkpoints_only(places, tmp_path, what):
    original, copy = places
    CheckpointStorage(copy).discard(f"{original}/{what}")

    assert states(tmp_path) == ["original"]


@pytest.mark.parametrize(
    "recorded",
    [
        SAVED,
        SAVED.rpartition("/")[0],
        SAVED.partition("/")[0],
        "..",
        "../..",
        "/",
        "",
        f"{SAVED}/..",
    ],
)
def test_what_is_recorded_elsewhere_is_never_deleted(places, tmp_path, recorded):
    original, _ = places
    own = tmp_path / "own"
    (own / "runs").mkdir(parents=True)
    CheckpointStorage(str(own)).discard(f"{original}/{recorded}")

    assert states(tmp_path) == ["copy", "original"]
    assert (own / "runs").exists()


def test_deleting_what_is_deleted_already_is_no_error(places, tmp_path):
    original, _ = places
    CheckpointStorage(original).discard(f"{original}/{SAVED}")
    CheckpointStorage(original).discard(f"{original}/{SAVED}")

    assert states(tmp_path) == ["copy"]


@pytest.mark.parametrize("storage", ["nonsense://x", "/dev/null/ray", "s3:///"])
def test_an_unwritable_storage_is_an_error(storage):
    with pytest.raises(ResourceError, match=f"--storage {storage}: is not writable"):
        check_storage(storage)


def test_the_check_of_a_storage_leaves_no_files(tmp_path):
    check_storage(str(tmp_path / "ray"))

    assert list((tmp_path / "ray").iterdir()) == []
