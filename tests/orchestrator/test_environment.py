from orchestrator import environment


def test_a_relative_data_root_is_relative_to_the_drivers_folder(tmp_path, monkeypatch):
    """
    Workers have another current folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AOL_DATA", "images")
    environment.prepare()

    assert environment.os.environ["AOL_DATA"] == str(tmp_path / "images")
