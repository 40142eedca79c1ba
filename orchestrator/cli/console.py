"""Console output of `run`: progress bars on a terminal, plain lines elsewhere."""

import os
import socket
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from aol.text import printable, printable_lines
from orchestrator.formatting import MISSING, format_duration, pluralize
from orchestrator.masking import mask_secrets
from orchestrator.planning.plan import Action, PlannedRun
from orchestrator.scheduling.events import EpochDone, Event, Finished, Placed, Tick
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Status

LINE_INTERVAL_S = 10.0  # between two epoch lines of one run
STDERR = 2  # file descriptor
LOG_LINES = 12  # printed from the log of a failed run


class ConsoleObserver:
    """Prints messages, the plan and the progress of an invocation to the standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console, self.quiet = Console(file=sys.stderr), quiet
        self._bars: Progress | None = None
        self._stages: dict[str, TaskID] = {}
        self._stderr = os.dup(STDERR)
        weakref.finalize(self, os.close, self._stderr)

    def message(self, text: str, *, important: bool = False) -> None:
        """Print a line; with `quiet`, only an important one."""
        if important or not self.quiet:
            _print(self.console, text)

    def interrupted(self, text: str) -> None:
        """Print a line, even with `quiet` and while the standard error is redirected."""
        with suppress(OSError):  # the terminal may be closed
            os.write(self._stderr, f"{text}\n".encode())  # without locks, which any code may hold

    def planned(self, plan: Sequence[PlannedRun], profile: str, store: str) -> None:
        """Print the plan, or a line if no run is to be trained."""
        if not any(item.todo for item in plan):
            self.message(f"Nothing to do: {_count_done(plan)} in {store}.")
        elif not self.quiet:
            self.console.print(plan_table(plan, profile))

    def progress(self, stage: str, share: float) -> None:
        """Show a progress bar per stage of preparing images, on a terminal."""
        if not self.console.is_terminal:
            return
        if self._bars is None:
            self._bars = Progress(console=self.console, transient=True)
            self._bars.start()
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=1.0)
        self._bars.update(self._stages[stage], completed=share)

    def close(self) -> None:
        """Remove the progress bars."""
        if self._bars:
            self._bars.stop()
            self._bars = None

    def watch(self, work: Mapping[str, float], log_folder: Path) -> "ConsoleRecorder":
        """Return a recorder that shows the progress of runs."""
        self.close()
        return ConsoleRecorder(self.console, work, log_folder, quiet=self.quiet)


class ConsoleRecorder:
    """Shows the progress of runs: bars on a terminal, timestamped lines elsewhere."""

    def __init__(
        self, console: Console, work: Mapping[str, float], log_folder: Path, *, quiet: bool = False
    ) -> None:
        """Take the remaining work of each run, by key, in any unit."""
        self.console, self.work, self.log_folder, self.quiet = console, work, log_folder, quiet
        self.live = console.is_terminal and not quiet
        self.timers: dict[str, RunTimer] = {}
        self.finished: dict[str, Status] = {}
        self._work_total, self._work_finished = sum(work.values()) or 1.0, 0.0
        self.started = time.monotonic()
        self._last_line: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._runs = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            _EtaColumn(),
            console=console,
        )
        self._total = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=40),
            TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn(),
            _EtaColumn(),
            console=console,
        )
        self._total_bar = self._total.add_task("all runs", total=self._work_total, values="")
        self._live = Live(Group(self._runs, self._total), console=console, refresh_per_second=4)

    def __enter__(self) -> "ConsoleRecorder":
        if self.live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Placed(run, host, device, epoch):
                self._placed(run, host, device, epoch)
            case EpochDone(run, epoch, values):
                self._epoch_done(run, epoch, values)
            case Finished(run, status, error, _):
                self._finished(run, status, error)
            case Tick():
                pass
        self._update_total()

    def _placed(self, run: RunSpec, host: str, device: str, epoch: int) -> None:
        if run.key in self.timers:
            text = "its worker was lost, another takes over"
            self._print_line(run, text, always=not self.quiet)
        self.timers[run.key] = RunTimer(epoch, run.train.epochs)
        continued = f", continues after epoch {epoch}" if epoch else ""
        machine = f"{host}, " if host != socket.gethostname() else ""
        self._print_line(run, f"trains on {machine}{device}{continued}")
        self._update_bar(run, epoch, "")

    def _epoch_done(self, run: RunSpec, epoch: int, values: Mapping[str, float]) -> None:
        timer = self.timers.setdefault(run.key, RunTimer(epoch - 1, run.train.epochs))
        timer.epoch = epoch
        text = format_metrics(values)
        self._update_bar(run, epoch, text)
        now = time.monotonic()
        if now - self._last_line.get(run.key, -LINE_INTERVAL_S) >= LINE_INTERVAL_S:
            self._last_line[run.key] = now
            eta = f"  ETA {format_duration(timer.eta_s)}" if timer.eta_s is not None else ""
            self._print_line(run, f"epoch {epoch}/{run.train.epochs}  {text}{eta}")

    def _finished(self, run: RunSpec, status: Status, error: str | None) -> None:
        if run.key not in self.finished:
            self._work_finished += self.work.get(run.key, 0.0)
        self.finished[run.key] = status
        if (bar := self._bars.pop(run.key, None)) is not None:
            self._runs.remove_task(bar)
        timer = self.timers.pop(run.key, None)
        duration = f" in {format_duration(time.monotonic() - timer.started)}" if timer else ""
        if status is Status.DONE:
            self._print_line(run, f"done{duration}", always=not self.quiet)
        elif status is Status.INTERRUPTED:
            self._print_line(run, "interrupted", always=bool(timer) and not self.quiet)
        else:
            self._print_line(run, f"{status}{duration}", always=True)
            for line in failure_lines(self.log_folder / f"{run.key}.log", error):
                _print(self.console, f"    {line}", style="red")

    def _update_bar(self, run: RunSpec, epoch: int, values: str) -> None:
        if run.key not in self._bars:
            name = printable(f"{run.id:>3} {run.name} {run.train.data.name}")
            bar = self._runs.add_task(name, total=run.train.epochs, values="", eta=None)
            self._bars[run.key] = bar
        timer = self.timers.get(run.key)
        eta = timer.eta_s if timer else None
        self._runs.update(self._bars[run.key], completed=epoch, values=values, eta=eta)

    def _update_total(self) -> None:
        done = self._work_finished + sum(
            self.work.get(key, 0.0) * timer.share for key, timer in self.timers.items()
        )
        total, elapsed = self._work_total, time.monotonic() - self.started
        eta = elapsed / done * (total - done) if done > 0.02 * total else None
        count = f"{len(self.finished)}/{len(self.work)} runs"
        self._total.update(self._total_bar, completed=done, values=count, eta=eta)

    def _print_line(self, run: RunSpec, text: str, *, always: bool = False) -> None:
        """Print a timestamped line; on a terminal, where bars show the rest, only with `always`."""
        if (self.quiet or self.live) and not always:
            return
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        name = f"run {run.id} {run.name} ({run.train.data.name}, seed {run.train.seed})"
        _print(self.console, f"{stamp}  {name}: {text}")


class RunTimer:
    """Estimates the remaining time of a run from its epochs in this invocation."""

    def __init__(self, epoch: int, epochs: int) -> None:
        self.first, self.epoch, self.epochs = epoch, epoch, epochs
        self.started = time.monotonic()

    @property
    def share(self) -> float:
        """Return the share of this invocation's epochs that are done, from 0 to 1."""
        return (self.epoch - self.first) / max(1, self.epochs - self.first)

    @property
    def eta_s(self) -> float | None:
        """Return the remaining seconds, None before the first epoch is done."""
        done = self.epoch - self.first
        if not done:
            return None
        return (time.monotonic() - self.started) / done * (self.epochs - self.epoch)


def _print(console: Console, text: str, style: str | None = None) -> None:
    """Print lines without passwords, control characters and rich's markup."""
    safe = printable_lines(mask_secrets(text))
    console.print(safe, style=style, highlight=False, soft_wrap=True, markup=False)


class _EtaColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        eta = task.fields.get("eta")
        return Text(f"ETA {format_duration(eta)}" if eta is not None else "", style="cyan")


def plan_table(plan: Iterable[PlannedRun], profile: str) -> Table:
    """Return a table of the action for each run and its reason."""
    table = Table(title=Text(f"profile {profile}"), title_justify="left", box=None)
    for header in ("run", "name", "dataset", "seed", "action", "from", "to", "reason"):
        justify: JustifyMethod = "right" if header in ("run", "seed", "from", "to") else "left"
        table.add_column(header, justify=justify, no_wrap=header != "reason")
    for item in plan:
        train = item.run.train
        start = (str(item.run.id), item.run.name, train.data.name, str(train.seed))
        epochs = (str(item.epoch), str(train.epochs))
        row = (*start, item.action, *epochs, item.reason)
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _count_done(plan: Iterable[PlannedRun]) -> str:
    """Return the numbers of runs that are done, diverged and unsound."""
    actions = Counter(item.action for item in plan)
    excluded = [action for action in (Action.DIVERGED, Action.UNSOUND) if actions[action]]
    others = "".join(f", {actions[action]} {action}" for action in excluded)
    return f"{pluralize(actions[Action.DONE], 'run is', 'runs are')} done{others}"


def format_metrics(values: Mapping[str, float]) -> str:
    """Return the loss, accuracy and CRA 36/255 of an epoch."""
    parts = [f"loss {values['train_loss']:.3f}"] if "train_loss" in values else []
    for name, title in (("accuracy", "acc"), ("cra_36", "CRA 36/255")):
        percent = f"{100 * values[name]:.1f}%" if name in values else MISSING
        parts.append(f"{title} {percent}")
    return "  ".join(parts)


def failure_lines(log: Path, error: str | None) -> Iterable[str]:
    """Return the last lines of a failed run's log, or of its error if the log is missing."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = (error or "").splitlines()
    return [*lines[-LOG_LINES:], f"full log: {log}"]
