import subprocess

from orchestrator import provenance as module
from orchestrator.provenance import PACKAGES, git_commit, provenance


def test_provenance_names_code_packages_and_data():
    found = provenance("digits")

    assert found.data_fingerprint == "ddda0fbdddb6cd56-b0b8e1d499dc517d"
    assert set(found.packages) <= set(PACKAGES)
    assert {"torch", "sqlalchemy"} <= set(found.packages)
    assert found.git_commit == git_commit()


def test_commit_is_marked_if_files_differ_and_none_outside_git(tmp_path, monkeypatch):
    package = tmp_path / "orchestrator"
    package.mkdir()
    (package / "provenance.py").write_text("1")
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments):
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=package, check=True, capture_output=True)

    outside = git_commit()
    git("init")
    git("commit", "--allow-empty", "-m", "a project around an environment that we are installed in")
    around = git_commit()
    git("add", ".")
    git("commit", "-m", "one")
    clean = git_commit()
    (package / "provenance.py").write_text("2")

    assert outside is around is None
    assert len(clean) == 40
    assert git_commit() == f"{clean}+changes"


def test_without_git_there_is_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert git_commit() is None


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))

    assert list(module.package_versions()) == ["torch"]
