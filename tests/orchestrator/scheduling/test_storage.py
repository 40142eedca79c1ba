import pytest
from pyarrow.fs import FileSystem

from orchestrator.scheduling.storage import (
    absolute_location,
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
