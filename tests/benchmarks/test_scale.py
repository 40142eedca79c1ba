import pytest

from benchmarks import machine, scale
from orchestrator.store import Status, Store


def test_the_page_has_a_row_per_operation_with_its_ratio(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    scale.main(["--runs", "3", "15", "--keep", "here"])

    page = (tmp_path / "here.md").read_text(encoding="utf-8")
    header, _, *rows = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")
    ]
    assert page in capsys.readouterr().out
    assert header == ["ms per run", "3 runs", "15 runs", "ratio"]
    assert {"`queue`", "`recover`", "`heartbeat`", "`status`", "`report`", "driver's loop"} <= {
        name for name, *_ in rows
    }
    assert all(float(number) >= 0 for _, *numbers in rows for number in numbers)


def test_the_experiment_has_as_many_different_runs_as_asked_for():
    keys = {run.key for run in scale.large_experiment(100).runs}
    changed = {run.key for run in scale.change(scale.large_experiment(100)).runs}

    assert len(keys) == len(changed) == 100
    assert not keys & changed


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """
    Return the store after the benchmark of fifteen runs, one of them with two seeds.
    """
    path = tmp_path_factory.mktemp("scale") / "store.db"
    scale.measure(path, 15, scale.CLOCKS["cpu"])
    with Store(path) as store:
        yield store


def test_every_run_is_trained_and_every_changed_one_lost(measured):
    done = measured.runs(statuses=[Status.DONE])

    assert len(done) == 15
    assert {(run.epoch, run.recorded, len(run.checkpoints)) for run in done} == {(3, 3, 1)}
    assert all(len(measured.margins(run.key)) == 4 * scale.IMAGES for run in done)
    assert len(measured.runs(statuses=[Status.INTERRUPTED])) == 15
