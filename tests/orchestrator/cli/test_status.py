import json
import sys

import pytest
from rich.console import Console
from sqlalchemy import event

from orchestrator.analysis.status import run_statuses
from orchestrator.cli import status as module
from orchestrator.cli.status import print_status, watch_status
from orchestrator.provenance import Provenance
from orchestrator.store import Status, Store

ORIGIN = Provenance("abc", {}, "d")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "store.db")
    yield store
    store.engine.dispose()


def start(store, run, *, epochs=0, seconds=2.0):
    """
    Store a run in training with so many epochs of so many seconds.
    """
    store.queue([run])
    store.start(run, ORIGIN)
    store.set_placement(run.key, "host", "CPU, 2 threads", 0)
    for epoch in range(1, epochs + 1):
        values = {"train_loss": 1 / epoch, "accuracy": 0.5, "cra_36": 0.25}
        store.record(run.key, epoch, values | {"seconds": seconds, "images_per_s": 100.0})


def lose_driver(store):
    store.close()  # reading connects again


def words(line):
    return " ".join(line.split())


def printed(store, capsys, *, profile=None, **options):
    print_status(store, profile, **options)
    return capsys.readouterr().out


def test_every_run_has_its_state(store, make_run):
    states = [Status.DONE, Status.FAILED, Status.DIVERGED, Status.INTERRUPTED, Status.UNSOUND]
    for number, state in enumerate(states):
        start(store, make_run(number), epochs=1)
        store.finish(make_run(number).key, state)
    start(store, make_run(5))
    store.queue([make_run(6)])

    assert [item.state for item in run_statuses(store, None)] == [
        "done",
        "failed",
        "diverged",
        "interrupted",
        "unsound",
        "running",
        "pending",
    ]


def test_a_running_run_without_driver_is_lost(store, make_run):
    start(store, make_run(), epochs=1)
    lose_driver(store)
    (found,) = run_statuses(store, None)

    assert found.state == "lost (driver gone)"
    assert found.eta_s is None


def test_a_pending_run_without_driver(store, make_run):
    store.queue([make_run()])
    lose_driver(store)
    (found,) = run_statuses(store, None)

    assert found.state == "pending (driver gone)"


def test_the_eta_is_the_remaining_epochs_at_the_latest_speed(store, make_run):
    """
    The first epochs, which are slower, do not count.
    """
    run = make_run(epochs=100)
    start(store, run, epochs=2, seconds=1000.0)
    for epoch in range(3, 8):
        store.record(run.key, epoch, {"seconds": 2.0, "images_per_s": 50.0 * epoch})
    (found,) = run_statuses(store, None)

    assert found.eta_s == 93 * 2.0
    assert found.images_per_s == 250.0


def test_the_eta_includes_evaluations_as_often_as_they_take_place(store, make_run):
    """
    Every tenth epoch ends with one, and its last five with none.
    """
    run = make_run(epochs=100, eval_every=10)
    store.queue([run])
    store.start(run, ORIGIN)
    for epoch in range(1, 26):
        store.record(run.key, epoch, {"seconds": 1.0 if epoch % 10 else 11.0})
    (found,) = run_statuses(store, None)

    assert found.eta_s == 75 * 2.0


def test_only_a_run_in_training_has_an_eta(store, make_run):
    start(store, make_run(1), epochs=1)
    start(store, make_run(2), epochs=1)
    start(store, make_run(3))
    store.finish(make_run(2).key, Status.FAILED)

    assert [item.eta_s for item in run_statuses(store, None)] == [4.0, None, None]


def test_values_are_those_of_the_newest_epoch(store, make_run):
    start(store, make_run(), epochs=2)
    (found,) = run_statuses(store, None)

    assert found.values["train_loss"] == 0.5


def test_a_profile_shows_its_own_runs_only(store, make_run):
    store.queue([make_run(1), make_run(2, profile="paper")])

    assert [item.run.run_id for item in run_statuses(store, "paper")] == [2]
    assert [item.run.run_id for item in run_statuses(store, None)] == [1, 2]
    assert run_statuses(store, "nothing") == []


def test_table_has_a_line_per_run_with_its_numbers(store, make_run, capsys):
    start(store, make_run(7, epochs=12), epochs=2, seconds=30.0)
    store.queue([make_run(8)])
    header, first, second = printed(store, capsys).splitlines()

    assert words(header) == (
        "run name dataset profile seed epoch loss acc CRA 36/255 images/s ETA state"
    )
    assert words(first) == "7 AOL-Small digits demo 7 2/12 0.500 50.0 25.0 100 5 min running"
    assert words(second) == "8 AOL-Small digits demo 8 0/3 – – – – – pending"


def test_piped_table_is_not_cut_to_a_narrow_terminal(store, make_run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    start(store, make_run(7), epochs=1)
    lose_driver(store)

    assert "lost (driver gone)" in printed(store, capsys).splitlines()[1]


def test_json_is_json_and_nothing_else(store, make_run, capsys):
    start(store, make_run(7), epochs=2)
    (record,) = json.loads(printed(store, capsys, as_json=True))

    assert record == {
        "key": make_run(7).key,
        "run_id": 7,
        "name": "AOL-Small",
        "dataset": "digits",
        "profile": "demo",
        "seed": 7,
        "state": "running",
        "epoch": 2,
        "epochs": 3,
        "metrics": {
            "accuracy": 0.5,
            "cra_36": 0.25,
            "images_per_s": 100.0,
            "seconds": 2.0,
            "train_loss": 0.5,
        },
        "images_per_s": 100.0,
        "eta_s": 2.0,
        "host": "host",
        "device": "CPU, 2 threads",
        "heartbeat_at": store.runs()[0].heartbeat_at,
        "error": None,
    }


def test_an_empty_store_is_an_empty_list_or_a_header(store, capsys):
    assert json.loads(printed(store, capsys, as_json=True)) == []
    assert len(printed(store, capsys).splitlines()) == 1
    assert len(printed(store, capsys, everything=True).splitlines()) == 1


def test_a_long_table_is_cut_to_the_most_relevant_runs(store, make_run, capsys, monkeypatch):
    """
    They keep the order of all tables; JSON and --all contain every run.
    """
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    for number in (1, 2, 3):
        start(store, make_run(number), epochs=1)
    store.finish(make_run(1).key, Status.DONE)
    store.finish(make_run(2).key, Status.DONE)
    store.queue([make_run(9, profile="paper")])
    _, first, second, note = printed(store, capsys).splitlines()
    whole = printed(store, capsys, everything=True).splitlines()
    of_one = printed(store, capsys, profile="paper").splitlines()

    assert words(first) == "3 AOL-Small digits demo 3 1/3 1.000 50.0 25.0 100 4 s running"
    assert words(second) == "9 AOL-Small digits paper 9 0/3 – – – – – pending"
    assert note.startswith("2 of 4 runs (2 done, 1 pending, 1 running), unfinished ones first; ")
    assert [words(line)[0] for line in whole[1:]] == ["1", "2", "3", "9"]
    assert (words(whole[3]), words(whole[4])) == (words(first), words(second))
    assert len(of_one) == 2
    assert len(json.loads(printed(store, capsys, as_json=True))) == 4


def test_a_table_of_all_runs_has_no_note(store, make_run, capsys, monkeypatch):
    monkeypatch.setattr(module, "MAX_ROWS", 2)
    store.queue([make_run(1), make_run(2)])

    assert len(printed(store, capsys).splitlines()) == 3


def test_the_number_of_queries_does_not_grow_with_the_runs(store, make_run, capsys):
    queries = []
    event.listen(store.engine, "before_cursor_execute", lambda *given: queries.append(given[2]))
    counts = []
    for number in (1, 2, 3):
        start(store, make_run(number), epochs=2)
        queries.clear()
        printed(store, capsys)
        counts.append(len(queries))

    assert counts == [counts[0]] * 3


def terminal(file):
    assert file is sys.stdout
    return Console(file=file, force_terminal=True, width=160)


def test_watching_updates_the_table_until_interrupted(store, make_run, capsys, monkeypatch):
    run = make_run(7)
    start(store, run)
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 2:
            raise KeyboardInterrupt
        store.finish(run.key, Status.DONE)

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module, "Console", terminal)
    with pytest.raises(KeyboardInterrupt):
        watch_status(store, None)
    output = capsys.readouterr().out

    assert len(sleeps) == 2
    assert output.index("running") < output.index("done")
