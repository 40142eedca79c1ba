"""What an epoch takes, all in all: `python -m benchmarks.epochs`. Needs torch alone.

Trains a few epochs of each network as `python -m aol` does, on random images of the real number:
with augmentation, evaluations, metrics on the disk, saved states and the certified end. A run's
seconds per epoch follow from its own settings and are printed as `campaign.py --rates` takes them,
by run ID for a plan and by network otherwise.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import get_args

import torch

from aol.atomic import atomic_path
from aol.cli.train import select_runs
from aol.config import DataConfig, Precision, TrainConfig
from aol.data.datasets import Images
from aol.training.records import Outcome, Run
from aol.training.run_folder import RunFolder
from benchmarks.contestants import config_of
from benchmarks.device import free, own_stream
from benchmarks.ways import MODELS, narrowed

EPOCHS = 8
WARM = 2  # epochs: the first step and the first evaluation choose, allocate, record
LEAST_EPOCHS = WARM + 4  # two plain ones, one with an evaluation, and the last
EVAL_EVERY = 2
SAVE_EVERY_S = 60.0  # of `python -m aol`
PAPER_EVAL_EVERY = 10  # of the profile "paper"

BothParts = tuple[Images, Images]


@dataclass(frozen=True)
class Times:
    """Seconds of an epoch's training, and of what comes on top of some of them.

    `end` is what the last epoch and its certificate take beyond that.
    """

    epoch: float
    evaluation: float
    saving: float
    end: float

    def rate(self, config: TrainConfig) -> float:
        """A run's seconds per epoch, everything shared out among its epochs."""
        trained = self.epoch + self.evaluation / config.eval_every
        return trained * (1 + self.saving / SAVE_EVERY_S) + self.end / config.epochs

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:.2f} s, evaluation {self.evaluation:.2f} s, "
            f"saving {self.saving:.2f} s, end {self.end:.1f} s"
        )


def measured(
    config: TrainConfig,
    images: BothParts,
    device: torch.device,
    epochs: int,
    *,
    cuda_graph: bool = True,
) -> Times:
    """Train a run of so few epochs to its end, and look at the clock.

    Raises: RuntimeError if it diverges.
    """
    steady = replace(config.optimizer, drops=())  # a step is recorded anew for another rate
    config = replace(config, epochs=epochs, eval_every=EVAL_EVERY, optimizer=steady)
    told: list[float] = []  # when each epoch was over and on the disk
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary))
        outcome = folder.train(
            Run("timed", 0, "timed", "timed", config),
            data_root=Path(temporary),
            images=images,
            device=device,
            cuda_graph=cuda_graph,
            must_stop=lambda next_s: False,
            save_every_s=0.0,
            log=lambda text: told.append(time.monotonic()),
        )
        ended = time.monotonic()
        lines = folder.metrics_file.read_text(encoding="utf-8").splitlines()
    if outcome == Outcome.DIVERGED:
        raise RuntimeError("training diverged: there is nothing to measure")
    seconds = [json.loads(line)["values"]["seconds"] for line in lines]
    return _times(config, seconds, told, ended)


def _times(config: TrainConfig, seconds: list[float], told: list[float], ended: float) -> Times:
    warm = range(WARM, config.epochs - 1)
    plain = median(seconds[epoch] for epoch in warm if not config.evaluates(epoch))
    tested = median(seconds[epoch] for epoch in warm if config.evaluates(epoch))
    saving = median(told[epoch] - told[epoch - 1] - seconds[epoch] for epoch in warm)
    end = seconds[-1] - plain + ended - told[-1] - saving
    return Times(plain, max(tested - plain, 0), max(saving, 0), max(end, 0))


def random_images(config: TrainConfig, limit: int | None, device: torch.device) -> BothParts:
    """Images and labels of a run's number, at most `limit` to train on and a fifth to test."""
    counts = config.data.train_images, config.data.test_images
    if limit:
        counts = min(counts[0], limit), min(counts[1], max(limit // 5, 1))
    noise = torch.Generator().manual_seed(0)

    def some(count: int) -> Images:
        pixels = torch.randint(256, (count, 32, 32, 3), generator=noise, dtype=torch.uint8)
        labels = torch.randint(config.data.classes, (count,), generator=noise)
        return Images(pixels.permute(0, 3, 1, 2).to(device), labels.to(device))

    return some(counts[0]), some(counts[1])


def wanted(options: argparse.Namespace) -> dict[str, TrainConfig]:
    """What to measure: the plan's runs by ID, or the networks with the paper's settings by name.

    Raises: OSError, KeyError, TypeError, ValueError for a plan that is none.
    """
    if options.plan:
        return {str(run.id): run.config for run in select_runs(options.plan, None)}
    augmented = DataConfig(name="cifar10")
    return {
        name: replace(
            config_of(MODELS[name], options.batch, options.precision),
            data=augmented,
            eval_every=PAPER_EVAL_EVERY,
        )
        for name in options.networks or MODELS
    }


def alike(config: TrainConfig) -> TrainConfig:
    """What runs share whose epochs take the same time: seed, loss and schedule do not matter."""
    data = replace(config.data, name="cifar10") if config.data.name == "cifar100" else config.data
    loss = replace(config.loss, offset=1.0, temperature=1.0)
    return replace(config, data=data, loss=loss, seed=0, epochs=1, eval_every=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep; 1 if a network could not be trained, 2 for a mistake in the input."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.networks) - set(MODELS)):
        parser.error(f"unknown: {', '.join(unknown)}; the networks are {', '.join(MODELS)}")
    if options.epochs < LEAST_EPOCHS:
        parser.error(f"--epochs: at least {LEAST_EPOCHS}, got {options.epochs}")
    try:
        runs = wanted(options)
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"{options.plan}: {error!r}: is it what `plan --json` printed?", file=sys.stderr)
        return 2
    runs = {name: _narrowed(config, options.width) for name, config in runs.items()}
    found: dict[TrainConfig, Times | None] = {}
    rates: dict[str, float] = {}
    for name, config in runs.items():
        key = alike(config)
        if key not in found:
            found[key] = _measured_or_none(name, config, options)
        if times := found[key]:
            rates[name] = round(times.rate(config), 4)
        _keep(options.rates, rates)
    print(json.dumps(rates))
    return int(None in found.values())


def _narrowed(config: TrainConfig, width: float) -> TrainConfig:
    return config if width == 1 else replace(config, model=narrowed(config.model, width))


def _measured_or_none(name: str, config: TrainConfig, options: argparse.Namespace) -> Times | None:
    """What it took, None if it failed: the others are worth their time all the same."""
    device = torch.device(options.device)
    try:
        images = random_images(config, options.images, device)
        with own_stream():
            times = measured(config, images, device, options.epochs, cuda_graph=not options.eager)
    except Exception:
        print(f"{name}:", file=sys.stderr)
        traceback.print_exc()
        return None
    finally:
        free(device)
    print(f"{name}, {config.precision}: {times}", flush=True)
    return times


def _keep(file: Path | None, rates: dict[str, float]) -> None:
    """At once: the call may be ended at any time."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as part:
            part.write_text(json.dumps(rates), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs", description=__doc__)
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help=", ".join(MODELS))
    add("--plan", type=Path, metavar="FILE", help="the runs of a plan.json instead")
    add("--rates", type=Path, metavar="FILE", help="write the rates there, too")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--eager", action="store_true", help="no graphs: where recording fails for good")
    add("--precision", choices=get_args(Precision), default="tf32")
    add("--batch", type=int, default=250)
    add("--epochs", type=int, default=EPOCHS, help="to measure (default: %(default)s)")
    add("--width", type=float, default=1.0, help="narrower networks, to try the program")
    add("--images", type=int, help="fewer images, to try the program")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
