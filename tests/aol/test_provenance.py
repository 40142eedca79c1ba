import os
import subprocess

import pytest

from aol import provenance as module
from aol.provenance import UNKNOWN, Checkout, checkout


@pytest.fixture
def package(tmp_path, monkeypatch):
    """
    Return a folder that replaces that of this program.
    """
    package = tmp_path / "aol"
    package.mkdir()
    (package / "provenance.py").write_text("1\n")
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    monkeypatch.setattr(module, "PACKED", package / "checkout.json")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return package


def git(package, *arguments):
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=package, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def committed(package):
    git(package.parent, "init")
    git(package, "add", ".")
    git(package, "commit", "-m", "one")
    return git(package, "rev-parse", "HEAD")


def test_a_folder_outside_git_has_no_commit(package):
    assert checkout() == Checkout(None, None)


def test_the_repository_around_an_environment_is_not_recorded(package):
    git(package.parent, "init")
    git(package.parent, "commit", "--allow-empty", "-m", "another project")

    assert checkout() == Checkout(None, None)


def test_without_changes_there_is_only_the_commit(committed):
    assert checkout() == Checkout(committed, None)


def test_changes_mark_the_commit_and_are_a_patch_that_restores_them(package, committed):
    (package / "provenance.py").write_bytes("2 ü\r\n".encode())
    found = checkout()
    git(package, "checkout", "provenance.py")
    patch = package.parent / "patch"
    patch.write_bytes(found.diff.encode())
    git(package.parent, "apply", str(patch))

    assert found.commit == f"{committed}+changes"
    assert (package / "provenance.py").read_bytes() == "2 ü\r\n".encode()


def test_an_untracked_module_is_a_change(package, committed):
    (package / "new.py").write_text("3\n")
    (package.parent / "notes.txt").write_text("no code")
    found = checkout()
    (package / "new.py").unlink()
    patch = package.parent / "patch"
    patch.write_bytes(found.diff.encode())
    git(package.parent, "apply", str(patch))

    assert found.commit == f"{committed}+changes"
    assert (package / "new.py").read_text() == "3\n"
    assert "notes" not in found.diff


def test_a_patch_that_is_too_long_is_left_out(package, committed):
    (package / "provenance.py").write_text("x" * module.LONGEST_DIFF)

    assert checkout() == Checkout(f"{committed}+changes", None)


def test_generated_tables_are_no_change(package, committed):
    results = package.parent / "results"
    results.mkdir()
    (results / "tables.md").write_text("1")
    git(package.parent, "add", "results")

    assert checkout() == Checkout(committed, None)


def test_packed_source_has_the_commit_it_was_packed_from(package):
    (package / "checkout.json").write_text(Checkout("abc+changes", "a patch").as_json())

    assert checkout() == Checkout("abc+changes", "a patch")


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert checkout() == Checkout(None, None)


def test_a_git_that_takes_too_long_leaves_the_commit_unknown(committed, monkeypatch, tmp_path):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(module, "GIT_TIMEOUT_S", 0.1)

    assert checkout() == Checkout(UNKNOWN)


def test_a_checkout_that_git_cannot_read_leaves_the_commit_unknown(package, committed):
    (package.parent / ".git" / "index").write_text("damaged")

    assert checkout() == Checkout(UNKNOWN)
