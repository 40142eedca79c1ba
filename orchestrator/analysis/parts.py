"""The parts of a run that were trained in different places or by different code."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.store import Attempt


@dataclass(frozen=True)
class Part:
    """Consecutive epochs, and the attempt that trained them; others may have the same origin."""

    before: int  # number of epochs trained before
    last: int
    attempt: Attempt
    number: int  # of the attempt, from 1

    @property
    def epochs(self) -> str:
        """Return the epochs in words."""
        if self.last - self.before > 1:
            return f"epochs {self.before + 1} to {self.last}"
        return f"epoch {self.last}" if self.last > self.before else "no epoch"


def trained_parts(attempts: Iterable[Attempt], epochs: int) -> list[Part]:
    """Return the parts of a run's `epochs` epochs by their origin.

    An attempt trains anew what earlier ones trained after its first epoch. One part is returned
    even if there are no epochs, unless there are no attempts.
    """
    parts: list[Part] = []
    for number, attempt in enumerate(attempts, start=1):
        start = attempt.from_epoch
        parts = [replace(part, last=min(part.last, start)) for part in parts if part.before < start]
        parts.append(Part(start, epochs, attempt, number))
    trained = [part for part in parts if part.before < part.last] or parts[-1:]
    return _joined(trained)


def describe_commits(attempts: Iterable[Attempt], epochs: int) -> str | None:
    """Return the commits of a run, with the epochs of each if there are several."""
    parts = trained_parts(attempts, epochs)
    commits = {part.attempt.git_commit for part in parts}
    if len(commits) <= 1:
        return next(iter(commits), None)
    return ", ".join(f"{part.attempt.git_commit or 'unknown'} ({part.epochs})" for part in parts)


def _joined(parts: list[Part]) -> list[Part]:
    """Return the parts; neighbours with the same origin are one."""
    joined = parts[:1]
    for part in parts[1:]:
        if _origin(part.attempt) == _origin(joined[-1].attempt):
            joined[-1] = replace(joined[-1], last=part.last)
        else:
            joined.append(part)
    return joined


def _origin(attempt: Attempt) -> tuple[object, ...]:
    """Return the facts about an attempt, apart from the settings, that can change its numbers."""
    code = (attempt.git_commit, attempt.git_diff, attempt.packages)
    return (*code, attempt.device, attempt.gpu_driver)
