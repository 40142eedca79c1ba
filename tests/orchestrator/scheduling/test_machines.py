from orchestrator.scheduling.machines import check_machine, find_other_versions, machine_versions


def test_another_version_of_a_machine_is_a_problem_of_it():
    wanted = machine_versions()

    assert set(wanted) == {"python", "torch", "ray"}
    assert find_other_versions(wanted) == []
    (problem, missing) = find_other_versions(wanted | {"torch": "1.0", "absent": "2"})
    assert problem.startswith(f"has torch {wanted['torch']}, the driver 1.0; install the driver's")
    assert missing.startswith("has no absent, the driver 2; install it")


def test_every_problem_of_a_machine_is_reported(tmp_path):
    """
    It does not share the driver's storage, and it has no images.
    """
    problems = check_machine(
        ["cifar100"], tmp_path / "no-images", str(tmp_path), str(tmp_path / ".seen-1")
    )

    assert len(problems) == 2
    assert "cannot access the driver's storage" in problems[0]
    assert "no source has cifar100" in problems[1]


def test_a_machine_with_images_and_storage_has_no_problems(tmp_path, data_root):
    (tmp_path / ".seen-1").touch()

    assert check_machine(["digits"], data_root, str(tmp_path), f"{tmp_path}/.seen-1") == []
