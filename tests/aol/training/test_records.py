"""
Reading the records of a run's folder.
"""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict

import pytest

from aol.reading import TEXT_LIMIT
from aol.training.records import (
    Attempt,
    End,
    Epoch,
    Outcome,
    Run,
    parse_record,
    read_record,
    read_records,
)
from tests.support.shell import PROJECT

TIME = "2026-01-02T03:04:05.678+00:00"
WHOLE = "must be a whole number from 0 to 2**63 - 1"
EPOCH = {"epoch": 1, "time": TIME, "values": {"loss": 2, "accuracy": 0.5}}
ATTEMPT = {
    "from_epoch": 0,
    "time": TIME,
    "host": "here",
    "device": "cpu",
    "commit": None,
    "packages": {"torch": "2.13"},
    "fingerprints": {"train": "0", "test": "1"},
    "cuda": "13",
}
END = {"outcome": "done", "time": TIME, "error": None, "certificate": {"ratio": 0.5}}


def test_records_are_read_as_they_were_written(make_run):
    spec = make_run(7)
    run = Run(spec.key, spec.id, spec.name, spec.profile, spec.train)
    written = json.loads(json.dumps(run.as_dict()))

    assert list(written) == ["key", "id", "name", "profile", "settings"]
    assert parse_record(Run, written, "") == run
    assert asdict(parse_record(Epoch, EPOCH, "")) == EPOCH
    assert parse_record(End, END, "").outcome is Outcome.DONE
    assert parse_record(Attempt, ATTEMPT, "").diff is None
    assert parse_record(Attempt, ATTEMPT | {"diff": "a patch"}, "").diff == "a patch"


@pytest.mark.parametrize("text", ["2026-01-02T05:04:05.678+02:00", "2026-01-02T03:04:05.678Z"])
def test_times_are_in_utc(text):
    assert parse_record(Epoch, EPOCH | {"time": text}, "").time == TIME


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (Epoch, [1], "x: must be an object, got [1]"),
        (Epoch, EPOCH | {"epoch": "1"}, f"x: epoch: {WHOLE}, got '1'"),
        (Epoch, EPOCH | {"epoch": True}, f"x: epoch: {WHOLE}, got True"),
        (Epoch, EPOCH | {"epoch": -1}, f"x: epoch: {WHOLE}, got -1"),
        (Epoch, EPOCH | {"epoch": 2**63}, f"x: epoch: {WHOLE}, got 9223372036854775808"),
        (Epoch, EPOCH | {"time": "0001-01-01T00:00+14:00"}, "x: time: must be a time of ISO 8601"),
        (Epoch, EPOCH | {"time": "9999-12-31T23:59-14:00"}, "x: time: must be a time of ISO 8601"),
        (Epoch, EPOCH | {"time": 3}, "x: time: must be a time of ISO 8601 with its zone, got 3"),
        (Epoch, EPOCH | {"time": "2026-01-02T03:04:05"}, "x: time: must be a time of ISO 8601"),
        (Epoch, EPOCH | {"values": 3}, "x: values: must be an object, got 3"),
        (Epoch, EPOCH | {"values": {"a": "1"}}, "x: values.a: must be a finite number, got '1'"),
        (Epoch, EPOCH | {"values": {"a": math.inf}}, "x: values.a: must be a finite number, got "),
        (Epoch, EPOCH | {"values": {"a": 10**400}}, "x: values.a: must be a finite number, got "),
        (Attempt, ATTEMPT | {"commit": 1}, "x: commit: must be a text or null, got 1"),
        (Attempt, ATTEMPT | {"packages": {"a": 1}}, "x: packages.a: must be a text, got 1"),
        (End, END | {"outcome": "stopped"}, "x: outcome: must be done, unsound or diverged, got"),
        (End, END | {"certificate": 1}, "x: certificate: must be an object or null, got 1"),
        (End, {}, "x: outcome: is missing"),
        (Run, {"key": "k", "id": 0, "name": "n", "profile": "p"}, "x: settings: is missing"),
    ],
)
def test_an_error_contains_the_place_and_the_field(kind, content, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        parse_record(kind, content, "x")


def test_a_truncated_last_line_is_ignored_and_any_other_is_an_error(tmp_path):
    file, line = tmp_path / "metrics.jsonl", json.dumps(EPOCH)
    file.write_text(f"{line}\n{line}\n{line[:9]}")
    assert len(list(read_records(Epoch, file))) == 2

    file.write_text(f"{line}\n{line[:9]}\n{line}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged: "):
        list(read_records(Epoch, file))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "end.json is damaged: it is nested too deeply"),
        (b'"\\ud800"', "end.json is damaged: .* surrogates not allowed"),
        (b"[" + b" " * TEXT_LIMIT, "end.json is larger than 67108864 bytes"),
    ],
    ids=["deep", "half a pair", "large"],
)
def test_a_file_that_is_too_deep_or_too_large_is_an_error(tmp_path, content, message):
    (tmp_path / "end.json").write_bytes(content)

    with pytest.raises(ValueError, match=message):
        read_record(End, tmp_path / "end.json")


def test_a_pipe_in_place_of_a_file_is_an_error_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "end.json")

    with pytest.raises(ValueError, match=r"end\.json is not a regular file"):
        read_record(End, tmp_path / "end.json")


def test_run_folders_can_be_read_without_torch():
    """
    `ingest`, `status` and `plan` would take seconds longer with it.
    """
    code = "import sys, aol.training.run_folder; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
