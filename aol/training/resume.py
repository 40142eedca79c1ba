"""Resume a run from its newest checkpoint, then train until its last epoch or until a stop.

`python -m aol` and the orchestrator's workers share this loop. It does not import torch: commands
that train nothing take `TIMED_EPOCHS` from here.
"""

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aol.errors import CheckpointError, first_line, is_unwritable
from aol.training.checkpoints import load_checkpoint

if TYPE_CHECKING:
    from aol.training.saving import StateSaver
    from aol.training.trainer import EpochMetrics, Trainer

# The number of latest epochs that an epoch's time is estimated from. The first of a process takes
# longer: libraries choose their algorithms in it, and the step is captured as a CUDA graph.
TIMED_EPOCHS = 5

SavedState = AbstractContextManager[Path]  # opened, it gives the file of a checkpoint


def resume_trainer(
    make: Callable[[], "Trainer"],
    states: Iterable[SavedState],
    *,
    log: Callable[[str], None],
    hint: str,
) -> "Trainer":
    """Return a trainer with the newest state that can be read, or a fresh one if there is no state.

    `states` come newest first. If none of them can be read, training does not start over: that
    would replace the saved states once their storage is back.

    Raises: CheckpointError with a line per state, then `hint`; OSError if the disk of this machine
    is full or read-only, which is no fault of the states.
    """
    reasons = []
    for saved in states:
        trainer = make()  # a new one per state: a damaged state may be loaded in part
        reason = _load(trainer, saved)
        if reason is None:
            log(f"continues after epoch {trainer.epoch}")
            if trainer.moved_from:
                log(
                    f"its state was saved on {trainer.moved_from}, it continues on "
                    f"{trainer.device.type}: the last bits will differ"
                )
            return trainer
        log(f"cannot continue from a checkpoint: {reason}")
        reasons.append(f"  {reason}")
    if reasons:
        raise CheckpointError("\n".join(["none of its checkpoints can be read:", *reasons, hint]))
    return make()


def _load(trainer: "Trainer", saved: SavedState) -> str | None:
    """Load a checkpoint into a trainer; return why it cannot be read, None if it was."""
    try:
        with saved as file:
            state = load_checkpoint(file)  # on the CPU: a GPU may be full or sick
            try:
                trainer.load_state_dict(state)
            except Exception as error:
                if isinstance(error, MemoryError) or "CUDA" in str(error):
                    raise _MachineFaultError from error
                raise CheckpointError(f"{file}: {_describe(error)}") from error
    except _MachineFaultError as fault:  # an older checkpoint would fare no better
        raise fault.__cause__ or fault from None
    except Exception as error:  # storages raise anything
        if is_unwritable(error):
            raise
        return str(error) if isinstance(error, CheckpointError) else _describe(error)
    return None


class _MachineFaultError(Exception):
    """Raised when the machine, not the checkpoint, keeps a state from being loaded."""


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def train_epochs(
    trainer: "Trainer",
    *,
    record: Callable[["EpochMetrics"], None],
    must_stop: Callable[[float], bool],
    saver: "StateSaver[Any]",
) -> bool:
    """Train epoch by epoch; return whether the last epoch was reached.

    `record(metrics)` runs after every epoch. The state is saved after the last epoch, before a
    stop, and in between when `saver` says so. `must_stop(seconds)` is called with the time that the
    next epoch may take: the longest of the `TIMED_EPOCHS` latest ones plus the latest save.

    Raises: DivergedError, SavingError, and what `record` raises.
    """
    latest: deque[float] = deque(maxlen=TIMED_EPOCHS)
    for metrics in trainer.epochs():
        latest.append(metrics.seconds)
        last = trainer.epoch == trainer.config.epochs
        stop = not last and must_stop(max(latest) + saver.seconds)
        record(metrics)
        if last or stop:
            saver.finish(trainer.state_dict)
        else:
            saver.step(trainer.state_dict)
        if stop:
            return False
    return True
