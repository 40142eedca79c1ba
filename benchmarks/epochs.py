"""The total time of an epoch: `python -m benchmarks.epochs`. Needs only torch.

Trains a few epochs of each network like `python -m aol`, on as many random images: with
augmentation, evaluations, metrics on the disk, saved states and the final certificate. The seconds
per epoch of a run follow from its settings. They are printed in the format of `campaign.py
--rates`, by run ID for a plan and by network otherwise.
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
from aol.cli.train import chosen
from aol.config import DataConfig, Precision, TrainConfig
from aol.data.datasets import Images
from aol.training.run_folder import Outcome, Run, RunFolder
from benchmarks.device import free, own_stream
from benchmarks.implementations import train_config
from benchmarks.variants import MODELS, scale_width

EPOCHS = 8
WARM_UP_EPOCHS = 2  # the first step and evaluation choose kernels, allocate and record
MIN_EPOCHS = WARM_UP_EPOCHS + 4  # two without evaluation, one with it, and the last one
EVAL_EVERY = 2
SAVE_EVERY_S = 60.0  # of `python -m aol`
PAPER_EVAL_EVERY = 10  # of the profile "paper"

TrainAndTest = tuple[Images, Images]


@dataclass(frozen=True)
class Times:
    """The seconds to train an epoch, to evaluate once, and to save once.

    `end` is the additional time of the last epoch, with the certificate.
    """

    epoch: float
    evaluation: float
    saving: float
    end: float

    def rate(self, config: TrainConfig) -> float:
        """Return a run's seconds per epoch, with everything else divided among its epochs."""
        trained = self.epoch + self.evaluation / config.eval_every
        return trained * (1 + self.saving / SAVE_EVERY_S) + self.end / config.epochs

    def __str__(self) -> str:
        return (
            f"epoch {self.epoch:.2f} s, evaluation {self.evaluation:.2f} s, "
            f"saving {self.saving:.2f} s, end {self.end:.1f} s"
        )


def measure(
    config: TrainConfig,
    images: TrainAndTest,
    device: torch.device,
    epochs: int,
    *,
    record: bool = True,
) -> Times:
    """Measure the times of a run with a few epochs. Raises: RuntimeError if it diverges."""
    steady = replace(config.optimizer, drops=())  # another rate would record the step again
    config = replace(config, epochs=epochs, eval_every=EVAL_EVERY, optimizer=steady)
    epoch_ends: list[float] = []  # including the write to the disk
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary))
        outcome = folder.train(
            Run("timed", 0, "timed", "timed", config),
            data_root=Path(temporary),
            images=images,
            device=device,
            record=record,
            must_stop=lambda next_s: False,
            save_every_s=0.0,
            say=lambda text: epoch_ends.append(time.monotonic()),
        )
        ended = time.monotonic()
        lines = folder.metrics_file.read_text(encoding="utf-8").splitlines()
    if outcome == Outcome.DIVERGED:
        raise RuntimeError("training diverged, so there is nothing to measure")
    seconds = [json.loads(line)["values"]["seconds"] for line in lines]
    return _times(config, seconds, epoch_ends, ended)


def _times(
    config: TrainConfig, seconds: list[float], epoch_ends: list[float], ended: float
) -> Times:
    warm = range(WARM_UP_EPOCHS, config.epochs - 1)
    plain = median(seconds[epoch] for epoch in warm if not config.evaluates(epoch))
    tested = median(seconds[epoch] for epoch in warm if config.evaluates(epoch))
    saving = median(epoch_ends[epoch] - epoch_ends[epoch - 1] - seconds[epoch] for epoch in warm)
    end = seconds[-1] - plain + ended - epoch_ends[-1] - saving
    return Times(plain, max(tested - plain, 0), max(saving, 0), max(end, 0))


def random_images(config: TrainConfig, limit: int | None, device: torch.device) -> TrainAndTest:
    """Return random images in a run's numbers, at most `limit` and a fifth of it for testing."""
    counts = config.data.train_images, config.data.test_images
    if limit:
        counts = min(counts[0], limit), min(counts[1], max(limit // 5, 1))
    noise = torch.Generator().manual_seed(0)

    def draw(count: int) -> Images:
        pixels = torch.randint(256, (count, 32, 32, 3), generator=noise, dtype=torch.uint8)
        labels = torch.randint(config.data.classes, (count,), generator=noise)
        return Images(pixels.permute(0, 3, 1, 2).to(device), labels.to(device))

    return draw(counts[0]), draw(counts[1])


def select_runs(options: argparse.Namespace) -> dict[str, TrainConfig]:
    """Return the plan's runs by ID, or the networks with the paper's settings by name.

    Raises: OSError, KeyError, TypeError, ValueError for an invalid plan.
    """
    if options.plan:
        return {str(run.id): run.config for run in chosen(options.plan, None)}
    augmented = DataConfig(name="cifar10")
    return {
        name: replace(
            train_config(MODELS[name], options.batch, options.precision),
            data=augmented,
            eval_every=PAPER_EVAL_EVERY,
        )
        for name in options.networks or MODELS
    }


def timing_key(config: TrainConfig) -> TrainConfig:
    """Return the settings on which the times depend: not seed, loss and schedule."""
    data = replace(config.data, name="cifar10") if config.data.name == "cifar100" else config.data
    loss = replace(config.loss, offset=1.0, temperature=1.0)
    return replace(config, data=data, loss=loss, seed=0, epochs=1, eval_every=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the runs; return 1 if a network could not be trained, 2 if the input is invalid."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.networks) - set(MODELS)):
        parser.error(f"unknown: {', '.join(unknown)}; the networks are {', '.join(MODELS)}")
    if options.epochs < MIN_EPOCHS:
        parser.error(f"--epochs: at least {MIN_EPOCHS}, got {options.epochs}")
    try:
        runs = select_runs(options)
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"{options.plan}: {error!r}; pass the output of `plan --json`", file=sys.stderr)
        return 2
    runs = {name: _scale_width(config, options.width) for name, config in runs.items()}
    found: dict[TrainConfig, Times | None] = {}
    rates: dict[str, float] = {}
    for name, config in runs.items():
        key = timing_key(config)
        if key not in found:
            found[key] = _measure_or_none(name, config, options)
        if times := found[key]:
            rates[name] = round(times.rate(config), 4)
        _write_rates(options.rates, rates)
    print(json.dumps(rates))
    return int(None in found.values())


def _scale_width(config: TrainConfig, width: float) -> TrainConfig:
    return config if width == 1 else replace(config, model=scale_width(config.model, width))


def _measure_or_none(name: str, config: TrainConfig, options: argparse.Namespace) -> Times | None:
    """Return the times, or None after an error, so that the other runs are still measured."""
    device = torch.device(options.device)
    try:
        images = random_images(config, options.images, device)
        with own_stream():
            times = measure(config, images, device, options.epochs, record=not options.eager)
    except Exception:
        print(f"{name}:", file=sys.stderr)
        traceback.print_exc()
        return None
    finally:
        free(device)
    print(f"{name}, {config.precision}: {times}", flush=True)
    return times


def _write_rates(file: Path | None, rates: dict[str, float]) -> None:
    """Write the rates after each run, because the program may be stopped at any time."""
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as part:
            part.write_text(json.dumps(rates), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.epochs", description=__doc__)
    add = parser.add_argument
    add("networks", nargs="*", metavar="NETWORK", help=", ".join(MODELS))
    add("--plan", type=Path, metavar="FILE", help="measure the runs of a plan.json")
    add("--rates", type=Path, metavar="FILE", help="write the rates to a file as well")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--eager", action="store_true", help="without graphs, where recording always fails")
    add("--precision", choices=get_args(Precision), default="tf32")
    add("--batch", type=int, default=250)
    add("--epochs", type=int, default=EPOCHS, help="epochs to train (default: %(default)s)")
    add("--width", type=float, default=1.0, help="narrower networks, to try the program")
    add("--images", type=int, help="fewer images, to try the program")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
