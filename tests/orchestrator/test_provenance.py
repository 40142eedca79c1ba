from aol.provenance import Checkout
from orchestrator import provenance as module
from orchestrator.provenance import PACKAGES, provenance


def test_provenance_names_code_packages_and_data(monkeypatch):
    monkeypatch.setattr(module, "checkout", lambda: Checkout("abc+changes", "a patch"))
    found = provenance("digits")

    assert found.data_fingerprint == "ddda0fbdddb6cd56-b0b8e1d499dc517d"
    assert set(found.packages) <= set(PACKAGES)
    assert {"torch", "sqlalchemy"} <= set(found.packages)
    assert (found.git_commit, found.git_diff) == ("abc+changes", "a patch")


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))

    assert list(module.package_versions()) == ["torch"]
