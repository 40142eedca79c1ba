import io
import re
import time

import pytest
from rich.console import Console

from orchestrator.cli.console import (
    LINE_INTERVAL_S,
    LOG_LINES,
    ConsoleObserver,
    ConsoleRecorder,
    RunTimer,
    failure_lines,
    format_metrics,
    plan_table,
)
from orchestrator.planning.plan import Action, PlannedRun
from orchestrator.scheduling.events import EpochDone, Finished, Placed, Saved, Started, Tick
from orchestrator.store import Checkpoint, Status

VALUES = {"train_loss": 0.51239, "accuracy": 0.7034, "cra_36": 0.629}


@pytest.fixture
def clock(monkeypatch):
    """
    Return the time in seconds, which only the test changes.
    """
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def run(make_run):
    return make_run(7, epochs=10)


class Screen:
    """
    A recorder whose console output a test can read.
    """

    def __init__(self, folder, *runs, terminal=False, quiet=False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
        work = {run.key: 1.0 for run in runs}
        self.recorder = ConsoleRecorder(console, work, folder, quiet=quiet)
        self.file = console.file

    @property
    def text(self):
        return self.file.getvalue()

    @property
    def lines(self):
        """
        Return the lines without their timestamps, which must be present.
        """
        stamped = [re.fullmatch(r"\d\d:\d\d:\d\d  (.*)", line) for line in self.text.splitlines()]
        assert all(stamped)
        return [match[1] for match in stamped]


class CountedWork(dict):
    """
    The work of the runs, counting how often that of a run is read.
    """

    reads = 0

    def get(self, key, default=None):
        self.reads += 1
        return super().get(key, default)

    def values(self):
        for value in super().values():
            self.reads += 1
            yield value


NAME = "run 7 AOL-Small (digits, seed 7)"


def test_a_run_is_printed_in_plain_lines(tmp_path, run, clock):
    screen = Screen(tmp_path, run)
    with screen.recorder as record:
        record(Started(run))
        record(Placed(run, "host", "CPU, 2 threads", 0))
        clock[0] += 3
        record(EpochDone(run, 1, VALUES))
        record(Saved(run, Checkpoint(1, "/c/1")))
        record(Tick())
        clock[0] += 117
        record(Finished(run, Status.DONE))

    assert screen.lines == [
        f"{NAME}: trains on host, CPU, 2 threads",
        f"{NAME}: epoch 1/10  loss 0.512  acc 70.3%  CRA 36/255 62.9%  ETA 27 s",
        f"{NAME}: done in 2 min",
    ]


def test_a_continued_run_has_its_first_epoch(tmp_path, run):
    screen = Screen(tmp_path, run)
    screen.recorder(Placed(run, "host", "CPU", 4))

    assert screen.lines == [f"{NAME}: trains on host, CPU, continues after epoch 4"]


def test_the_eta_of_a_continued_run_counts_this_invocations_epochs_only(tmp_path, run, clock):
    screen = Screen(tmp_path, run)
    screen.recorder(Placed(run, "host", "CPU", 4))
    clock[0] += 10
    screen.recorder(EpochDone(run, 5, VALUES))

    assert screen.lines[-1].endswith("ETA 50 s")


def test_a_lost_worker_is_printed(tmp_path, run):
    screen = Screen(tmp_path, run)
    screen.recorder(Placed(run, "host", "CPU", 0))
    screen.recorder(Placed(run, "other", "CPU", 2))

    assert screen.lines[1:] == [
        f"{NAME}: its worker was lost, another takes over",
        f"{NAME}: trains on other, CPU, continues after epoch 2",
    ]


def test_epoch_lines_are_limited_in_frequency(tmp_path, run, clock):
    screen = Screen(tmp_path, run)
    for epoch in range(1, 11):
        screen.recorder(EpochDone(run, epoch, VALUES))
        clock[0] += LINE_INTERVAL_S / 4 + 0.01
    shown = [re.search(r"epoch (\d+)/", line)[1] for line in screen.lines]

    assert shown == ["1", "5", "9"]


def test_each_run_has_lines_of_its_own(tmp_path, run, make_run, clock):
    other = make_run(8)
    screen = Screen(tmp_path, run, other)
    screen.recorder(EpochDone(run, 1, VALUES))
    screen.recorder(EpochDone(other, 1, VALUES))

    assert [line.split(":")[0] for line in screen.lines] == [NAME, NAME.replace("7", "8")]


def test_an_epoch_without_evaluation_has_its_loss_only(tmp_path, run, clock):
    screen = Screen(tmp_path, run)
    screen.recorder(EpochDone(run, 1, {"train_loss": 0.5}))

    assert "loss 0.500  acc –  CRA 36/255 –" in screen.text


def test_a_failure_prints_the_end_of_its_log(tmp_path, run):
    log = tmp_path / f"{run.key}.log"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    screen = Screen(tmp_path, run)
    screen.recorder(Placed(run, "host", "CPU", 0))
    screen.recorder(Finished(run, Status.FAILED, error="unused"))
    lines = screen.text.splitlines()[1:]

    assert lines[0].endswith(f"{NAME}: failed in 0 s")
    assert lines[1:] == [
        *(f"    line {number}" for number in range(100 - LOG_LINES, 100)),
        f"    full log: {log}",
    ]


def test_a_failure_without_a_log_prints_its_error(tmp_path, run):
    """
    The worker was on a machine that does not share the folder.
    """
    screen = Screen(tmp_path, run)
    screen.recorder(Finished(run, Status.FAILED, error="Traceback\nValueError: [red]no[/red]"))

    assert screen.text.splitlines()[1:] == [
        "    Traceback",
        "    ValueError: [red]no[/red]",
        f"    full log: {tmp_path / run.key}.log",
    ]


def test_undecodable_bytes_of_a_log_are_replaced(tmp_path):
    log = tmp_path / "x.log"
    log.write_bytes(b"one\n\xff two\n")

    assert list(failure_lines(log, None)) == [
        "one",
        "\N{REPLACEMENT CHARACTER} two",
        f"full log: {log}",
    ]


def test_a_failure_without_log_and_error_names_the_log(tmp_path):
    assert list(failure_lines(tmp_path / "x.log", None)) == [f"full log: {tmp_path / 'x.log'}"]


def test_a_diverged_run_has_its_error(tmp_path, run):
    screen = Screen(tmp_path, run)
    screen.recorder(Finished(run, Status.DIVERGED, error="the loss is not finite"))

    assert f"{NAME}: diverged" in screen.text
    assert "    the loss is not finite" in screen.text


def test_an_interrupted_run_has_a_line(tmp_path, run):
    screen = Screen(tmp_path, run)
    screen.recorder(Placed(run, "host", "CPU", 0))
    screen.recorder(Finished(run, Status.INTERRUPTED))

    assert screen.lines[-1] == f"{NAME}: interrupted"


def test_quiet_prints_nothing_of_a_run_that_ends_well(tmp_path, run):
    screen = Screen(tmp_path, run, terminal=True, quiet=True)
    with screen.recorder as record:
        record(Placed(run, "host", "CPU", 0))
        record(EpochDone(run, 1, VALUES))
        record(Finished(run, Status.DONE))

    assert screen.text == ""


def test_a_name_with_brackets_is_printed_as_it_is(tmp_path, make_run):
    """
    rich would read [bold] as markup.
    """
    run = make_run(7, name="AOL [small]")
    screen = Screen(tmp_path, run)
    screen.recorder(Placed(run, "host", "GPU [0]", 0))

    assert screen.lines == ["run 7 AOL [small] (digits, seed 7): trains on host, GPU [0]"]


# On a terminal


def plain(text):
    """
    Return what a terminal shows, without colours and cursor movements.
    """
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_shows_bars_instead_of_epoch_lines(tmp_path, run, make_run, clock):
    other = make_run(8)
    screen = Screen(tmp_path, run, other, terminal=True)
    with screen.recorder as record:
        record(Placed(run, "host", "CPU", 0))
        clock[0] += 5
        record(EpochDone(run, 5, VALUES))
        record(Finished(other, Status.DONE))
    last = plain(screen.text).splitlines()[-2:]

    assert re.search(r"7 AOL-Small digits .*5/10 .*loss 0\.512  acc 70\.3%.*ETA 5 s", last[0])
    assert re.search(r"all runs .*1/2 runs", last[1])
    assert "trains on" not in screen.text
    assert re.search(r"run 8 AOL-Small \(digits, seed 8\): done", plain(screen.text))


def test_a_finished_run_has_no_bar(tmp_path, run, clock):
    screen = Screen(tmp_path, run, terminal=True)
    with screen.recorder as record:
        record(Placed(run, "host", "CPU", 0))
        record(EpochDone(run, 1, VALUES))
        record(Finished(run, Status.DONE))
    last = plain(screen.text).splitlines()[-1]

    assert "1/1 runs" in last
    assert screen.recorder._runs.tasks == []


def test_the_total_eta_follows_the_work_not_the_number_of_runs(tmp_path, make_run, clock):
    """
    A tenth of the work took ten seconds, so ninety remain.
    """
    small, large = make_run(1, epochs=10), make_run(2, epochs=10)
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    recorder = ConsoleRecorder(console, {small.key: 10.0, large.key: 90.0}, tmp_path)
    recorder(Placed(small, "host", "CPU", 0))
    clock[0] += 10
    recorder(Finished(small, Status.DONE))
    (task,) = recorder._total.tasks

    assert task.fields["eta"] == pytest.approx(90)
    assert task.completed == 10


def test_epochs_of_an_earlier_invocation_do_not_affect_the_eta(tmp_path, run, clock):
    """
    Half was trained before. One epoch takes 10 s, and four remain.
    """
    screen = Screen(tmp_path, run, terminal=True)
    screen.recorder(Placed(run, "host", "CPU", 5))
    clock[0] += 10
    screen.recorder(EpochDone(run, 6, VALUES))
    (task,) = screen.recorder._total.tasks

    assert task.fields["eta"] == pytest.approx(40)


# Text


def test_summary_is_loss_accuracy_and_cra():
    assert format_metrics(VALUES) == "loss 0.512  acc 70.3%  CRA 36/255 62.9%"
    assert format_metrics({}) == "acc –  CRA 36/255 –"


def test_a_run_has_no_eta_before_its_first_epoch(clock):
    timer = RunTimer(4, 10)
    clock[0] += 20
    before = timer.eta_s
    timer.epoch = 6

    assert before is None
    assert timer.eta_s == 40


def words(line):
    return " ".join(line.split())


def test_the_plan_has_a_line_per_run(make_run):
    console = Console(file=io.StringIO(), width=120)
    plan = [
        PlannedRun(make_run(7, epochs=10), Action.CONTINUE, "interrupted after epoch 6", 4),
        PlannedRun(make_run(22), Action.NEW, "not in the store"),
    ]
    console.print(plan_table(plan, "demo"))
    title, header, first, second = console.file.getvalue().splitlines()

    assert title.strip() == "profile demo"
    assert words(header) == "run name dataset seed action from to reason"
    assert words(first) == "7 AOL-Small digits 7 continue 4 10 interrupted after epoch 6"
    assert words(second) == "22 AOL-Small digits 22 new 0 3 not in the store"


def test_a_message_of_a_signal_handler_is_printed_at_once_even_when_quiet(capfd):
    ConsoleObserver(quiet=True).interrupted("Stopping.")

    assert capfd.readouterr() == ("", "Stopping.\n")


def test_no_message_has_a_password_or_a_control_character(capsys):
    observer = ConsoleObserver()
    observer.message("in postgresql://u:secret@h/db\x1b[2J [bold]x[/]", important=True)

    assert capsys.readouterr().err == "in postgresql://u:***@h/db\\x1b[2J [bold]x[/]\n"


def test_a_plan_shows_names_and_reasons_as_they_are(make_run):
    run = make_run(0, name="[bold]a[/] \\")
    item = PlannedRun(run, Action.NEW, "[red]because[/nothing]\x1b[2J")
    console = Console(width=200, file=io.StringIO())

    console.print(plan_table([item], "demo"))

    text = console.file.getvalue()
    assert "[bold]a[/] \\ " in text
    assert "[red]because[/nothing]\\x1b[2J" in text


def test_showing_an_event_takes_as_long_with_many_runs_as_with_few(tmp_path, make_run):
    reads = []
    for count in (4, 40):
        runs = [make_run(number) for number in range(count)]
        work = CountedWork({run.key: 1.0 for run in runs})
        record = ConsoleRecorder(Console(file=io.StringIO()), work, tmp_path)
        for run in runs[:-1]:
            record(Finished(run, Status.DONE))
        work.reads = 0
        record(Placed(runs[-1], "host", "CPU", 0))
        record(Tick())
        record(Finished(runs[-1], Status.DONE))
        reads.append(work.reads)

    assert reads[0] == reads[1]
