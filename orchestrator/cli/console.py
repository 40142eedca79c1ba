"""The console of `run`: a live table on a terminal, plain lines elsewhere."""

import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
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

from orchestrator.formatting import MISSING, format_duration, pluralize
from orchestrator.planning.plan import Action, PlannedRun
from orchestrator.scheduling.events import EpochDone, Event, Finished, Placed, Tick
from orchestrator.spec.experiment import RunSpec
from orchestrator.store import Status

PLAIN_INTERVAL_S = 10.0  # between two plain lines of one run
LOG_TAIL = 12


class Clock:
    """Estimates the time a run still needs from its epochs in this invocation."""

    def __init__(self, epoch: int, epochs: int) -> None:
        self.first, self.epoch, self.epochs = epoch, epoch, epochs
        self.started = time.monotonic()

    def done(self, epoch: int) -> None:
        """Note that an epoch is finished."""
        self.epoch = epoch

    @property
    def share(self) -> float:
        """How much is done of what there was to do when it started here, 0 to 1."""
        return (self.epoch - self.first) / max(1, self.epochs - self.first)

    @property
    def left_s(self) -> float | None:
        """Seconds to go, None before the first epoch."""
        done = self.epoch - self.first
        if not done:
            return None
        return (time.monotonic() - self.started) / done * (self.epochs - self.epoch)


class _Eta(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text(f"ETA {format_duration(left)}" if left is not None else "", style="cyan")


class ConsoleObserver:
    """Prints an invocation's messages, its plan and its progress to the standard error."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console, self.quiet = Console(file=sys.stderr), quiet
        self._bars: Progress | None = None
        self._stages: dict[str, TaskID] = {}

    def message(self, text: str, *, important: bool = False) -> None:
        """Print a line, unless it is not important and the user wants quiet."""
        if important or not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def planned(self, plan: Sequence[PlannedRun], profile: str, store: str) -> None:
        """Print the plan, or that there is nothing to do."""
        if not any(item.todo for item in plan):
            self.message(f"Nothing to do: {_counted(plan)} in {store}.")
        elif not self.quiet:
            self.console.print(plan_table(plan, profile))

    def progress(self, stage: str, share: float) -> None:
        """Show a bar per stage of fetching images, on a terminal."""
        if not self.console.is_terminal:
            return
        if self._bars is None:
            self._bars = Progress(console=self.console, transient=True)
            self._bars.start()
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(stage, total=1.0)
        self._bars.update(self._stages[stage], completed=share)

    def close(self) -> None:
        """Remove the bars."""
        if self._bars:
            self._bars.stop()
            self._bars = None

    def watch(self, work: Mapping[str, float], log_folder: Path) -> "ConsoleRecorder":
        """Return a recorder that shows runs while they train."""
        self.close()
        return ConsoleRecorder(self.console, work, log_folder, quiet=self.quiet)


class ConsoleRecorder:
    """Shows runs on the console: bars where it is a terminal, timestamped lines where not."""

    def __init__(
        self, console: Console, work: Mapping[str, float], log_folder: Path, *, quiet: bool = False
    ) -> None:
        """`work` is what is left to do of each run, by key, in any unit."""
        self.console, self.work, self.log_folder, self.quiet = console, work, log_folder, quiet
        self.live = console.is_terminal and not quiet
        self.clocks: dict[str, Clock] = {}
        self.finished: dict[str, Status] = {}
        self.started = time.monotonic()
        self._last_line: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._runs = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TextColumn("{task.fields[values]}", markup=False),
            _Eta(),
            console=console,
        )
        self._all = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=40),
            TextColumn("{task.fields[values]}", markup=False),
            TimeElapsedColumn(),
            _Eta(),
            console=console,
        )
        self._whole = self._all.add_task("all runs", total=sum(work.values()) or 1, values="")
        self._live = Live(Group(self._runs, self._all), console=console, refresh_per_second=4)

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
                if run.key in self.clocks:
                    self._line(
                        run, "its worker was lost, another takes over", always=not self.quiet
                    )
                self.clocks[run.key] = Clock(epoch, run.train.epochs)
                continued = f", continues after epoch {epoch}" if epoch else ""
                there = f"{host}, " if host != socket.gethostname() else ""
                self._line(run, f"trains on {there}{device}{continued}")
                self._show(run, epoch, "")
            case EpochDone(run, epoch, values):
                self._epoch(run, epoch, values)
            case Finished(run, status, error, _):
                self._finish(run, status, error)
            case Tick():
                pass
        self._refresh()

    def _epoch(self, run: RunSpec, epoch: int, values: Mapping[str, float]) -> None:
        clock = self.clocks.setdefault(run.key, Clock(epoch - 1, run.train.epochs))
        clock.done(epoch)
        text = summary(values)
        self._show(run, epoch, text)
        now = time.monotonic()
        if now - self._last_line.get(run.key, -PLAIN_INTERVAL_S) >= PLAIN_INTERVAL_S:
            self._last_line[run.key] = now
            left = f"  ETA {format_duration(clock.left_s)}" if clock.left_s is not None else ""
            self._line(run, f"epoch {epoch}/{run.train.epochs}  {text}{left}")

    def _finish(self, run: RunSpec, status: Status, error: str | None) -> None:
        self.finished[run.key] = status
        if (task := self._tasks.pop(run.key, None)) is not None:
            self._runs.remove_task(task)
        clock = self.clocks.pop(run.key, None)
        took = f" in {format_duration(time.monotonic() - clock.started)}" if clock else ""
        if status is Status.DONE:
            self._line(run, f"done{took}", always=not self.quiet)
        elif status is Status.INTERRUPTED:
            self._line(run, "interrupted", always=bool(clock) and not self.quiet)
        else:
            self._line(run, f"{status}{took}", always=True)
            for line in failure_lines(self.log_folder / f"{run.key}.log", error):
                self.console.print(Text(f"    {line}", style="red"), soft_wrap=True)

    def _show(self, run: RunSpec, epoch: int, values: str) -> None:
        if run.key not in self._tasks:
            name = f"{run.id:>3} {run.name} {run.train.data.name}"
            task = self._runs.add_task(name, total=run.train.epochs, values="", left=None)
            self._tasks[run.key] = task
        clock = self.clocks.get(run.key)
        self._runs.update(
            self._tasks[run.key],
            completed=epoch,
            values=values,
            left=clock.left_s if clock else None,
        )

    def _refresh(self) -> None:
        complete = sum(self.work.get(key, 0.0) for key in self.finished)
        share = complete + sum(
            self.work.get(key, 0.0) * clock.share for key, clock in self.clocks.items()
        )
        whole = sum(self.work.values()) or 1.0
        elapsed = time.monotonic() - self.started
        left = elapsed / share * (whole - share) if share > 0.02 * whole else None
        count = f"{len(self.finished)}/{len(self.work)} runs"
        self._all.update(self._whole, completed=share, values=count, left=left)

    def _line(self, run: RunSpec, text: str, *, always: bool = False) -> None:
        """A timestamped line; on a terminal only what stays of interest."""
        if (self.quiet or self.live) and not always:
            return
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        name = f"run {run.id} {run.name} ({run.train.data.name}, seed {run.train.seed})"
        self.console.print(
            f"{stamp}  {name}: {text}", markup=False, highlight=False, soft_wrap=True
        )


def plan_table(made: Iterable[PlannedRun], profile: str) -> Table:
    """What will be done with each run, and why."""
    table = Table(title=f"profile {profile}", title_justify="left", box=None)
    for title in ("run", "name", "dataset", "seed", "what", "from", "to", "why"):
        numeric = title in ("run", "seed", "from", "to")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=title != "why")
    for item in made:
        train = item.run.train
        start = (str(item.run.id), escape(item.run.name), train.data.name, str(train.seed))
        table.add_row(*start, item.action, str(item.epoch), str(train.epochs), escape(item.reason))
    return table


def _counted(plan: Iterable[PlannedRun]) -> str:
    """Return how many runs are done, and how many ended without a usable result."""
    actions = Counter(item.action for item in plan)
    others = [(actions[one], one) for one in (Action.DIVERGED, Action.UNSOUND) if actions[one]]
    named = "".join(f", {count} {action}" for count, action in others)
    return f"{pluralize(actions[Action.DONE], 'run is', 'runs are')} done{named}"


def summary(values: Mapping[str, float]) -> str:
    """Loss, accuracy and CRA 36/255 of an epoch, in a few words."""
    parts = [f"loss {values['train_loss']:.3f}"] if "train_loss" in values else []
    for name, title in (("accuracy", "acc"), ("cra_36", "CRA 36/255")):
        shown = f"{100 * values[name]:.1f}%" if name in values else MISSING
        parts.append(f"{title} {shown}")
    return "  ".join(parts)


def failure_lines(log: Path, error: str | None) -> Iterable[str]:
    """The end of what a failed run said, from its log or else from its error."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = (error or "").splitlines()
    return [*lines[-LOG_TAIL:], f"whole log: {log}"]
