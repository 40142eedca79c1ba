"""One training run of the paper: SGD over device-resident images, one record per epoch.

`for metrics in Trainer(config, ...).epochs()` trains a run: the loop's body sees every epoch's
metrics, `break` stops it, and `state_dict()` after any epoch continues it later.
"""

import time
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aol.certification.certificate import RADII, LipschitzCertificate
from aol.certification.lipschitz import certify_network
from aol.certification.spectrum import JACOBIAN_IMAGES, jacobian_spectrum, layer_spectra
from aol.config import TrainConfig
from aol.data.datasets import Images, load
from aol.data.shuffle import shuffled
from aol.errors import CheckpointError
from aol.layers.modules import rescaled_once
from aol.models.architectures import build_model
from aol.training.attack import projected_gradient_descent
from aol.training.loss import offset_cross_entropy
from aol.training.metrics import certified, correct, margins, round_down
from aol.training.optimizer import (
    allow_tf32,
    make_optimizer,
    set_learning_rate,
    set_training_precision,
)
from aol.training.step import TrainingStep, scale_pixels

EVAL_BATCH = 1000
CERTIFY_BATCH = 250  # in float64; AOL-STD keeps 65 MB of each layer's outputs
AUGMENT_STREAM = 1 << 62  # keeps the augmentation's random numbers apart from the initialiser's


class DivergedError(Exception):
    """Raised when a loss or score is not finite; `epoch` counts the completed epochs."""

    def __init__(self, run: str, epoch: int, step: int | None) -> None:
        super().__init__(run, epoch, step)
        self.run, self.epoch, self.step = run, epoch, step

    def __str__(self) -> str:
        where = "the evaluation" if self.step is None else f"step {self.step}"
        done = "1 epoch" if self.epoch == 1 else f"{self.epoch} epochs"
        return f"run {self.run} diverged after {done}: no finite loss in {where}"


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """The measurements of one epoch; accuracies and CRA are fractions in [0, 1].

    `epoch` counts completed epochs from 1. Losses are means of the offset cross-entropy without
    the L2 term. Test metrics are None after epochs without an evaluation.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    images_per_s: float
    seconds: float
    test_loss: float | None = None
    accuracy: float | None = None
    cra_36: float | None = None
    cra_72: float | None = None
    cra_108: float | None = None
    cra_1: float | None = None

    def values(self) -> dict[str, float]:
        """Return the measured numbers by name, without the epoch and what was not measured."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None and name != "epoch"
        }


class Trainer:
    """Model, optimiser, images and random numbers of one run.

    Shapes: pixels (N, 3, 32, 32) uint8 and labels (N,) int64 of both sets of images; the model
        maps (N, 3, 32, 32) pixels in [0, 1] to scores (N, classes).
    Source: arXiv:2208.03160, training of its experiments.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        data_root: Path,
        device: torch.device,
        run: str = "?",
        cuda_graph: bool = True,
        images: tuple[Images, Images] | None = None,
    ) -> None:
        """Load the images and initialise the network.

        With `cuda_graph`, steps on CUDA are captured as a graph and replayed. `images`, to train on
        and to test with, take the place of those in `data_root`.

        Raises: DataError if the images cannot be had, ValueError if the widths do not fit.
        """
        self.config, self.device, self.run, self.cuda_graph = config, device, run, cuda_graph
        self.epoch = 0
        self.moved_from: str | None = None  # the kind of device that saved the state
        self.train, self.test = images or load(config.data, data_root, device)
        self.order = torch.Generator().manual_seed(config.seed)
        self.noise = torch.Generator(device).manual_seed(config.seed + AUGMENT_STREAM)
        model = build_model(config.model, config.data.classes, self.order)
        self.model: nn.Sequential = model.to(device)
        self.optimizer = make_optimizer(self.model, config)
        self.step = self._training_step()
        self._margins: Tensor | None = None

    def epochs(self) -> Iterator[EpochMetrics]:
        """Train from the current epoch to the last one, yielding after each.

        Raises: DivergedError.
        """
        while self.epoch < self.config.epochs:
            started = time.perf_counter()
            rate = self.config.learning_rate(self.epoch)
            set_learning_rate(self.optimizer, rate)
            self._margins = None
            loss, accuracy = self._train_epoch()
            trained = time.perf_counter()
            evaluates = self.config.evaluates(self.epoch)
            final = self.epoch + 1 == self.config.epochs
            tested = self._evaluate(final=final) if evaluates else {}
            self.epoch += 1
            yield EpochMetrics(
                epoch=self.epoch,
                learning_rate=rate,
                train_loss=loss,
                train_accuracy=accuracy,
                images_per_s=len(self.train) / (trained - started),
                seconds=time.perf_counter() - started,
                **tested,
            )
        self.step.close()  # the certified pass needs its memory

    def margins(self) -> Tensor:
        """Return the score margins of the whole test set in its order, (N,) float32 on the CPU.

        True class minus best other; negative where the image is misclassified. After the last
        epoch they are those of the certified pass, rounded down so that none is too large.
        """
        if self._margins is None:
            self._evaluate(final=self.epoch == self.config.epochs)
        assert self._margins is not None  # noqa: S101 - set by every evaluation
        return self._margins

    def certificate(self) -> LipschitzCertificate:
        """Certify the current network, in the arithmetic of `config.certify`."""
        return certify_network(self._certified_model(), tuple(self.test.pixels.shape[1:]))

    def singular_values(self) -> dict[str, Any]:
        """Return the spectra of the layers at the start and now, and of the Jacobian, for JSON.

        The Jacobian is that at the first test images. Source: `aol.certification.spectrum`.
        """
        shape = tuple(self.test.pixels.shape[1:])
        generator = torch.Generator().manual_seed(self.config.seed)
        start = build_model(self.config.model, self.config.data.classes, generator).to(self.device)
        images = scale_pixels(self.test.pixels[:JACOBIAN_IMAGES])
        return {
            "start": [one.as_dict() for one in layer_spectra(start, shape)],
            "trained": [one.as_dict() for one in layer_spectra(self.model, shape)],
            "jacobian": jacobian_spectrum(self.model, images).as_dict(),
        }

    def measure_attack(self) -> dict[str, Any] | None:
        """Attack the network as `config.attack` says; return the outcome for JSON, or None.

        `accuracy` and `robust` are shares of the attacked images before and after. The attack
        computes in the arithmetic of `config.certify`.
        """
        attack = self.config.attack
        if attack is None:
            return None
        model = self._certified_model()
        dtype = next(model.parameters()).dtype
        test = self.test
        images = min(attack.images or len(test), len(test))
        model.eval()
        robust = []
        with rescaled_once(model):
            for pixels, labels in zip(
                test.pixels[:images].split(CERTIFY_BATCH),
                test.labels[:images].split(CERTIFY_BATCH),
                strict=True,
            ):
                robust.append(
                    projected_gradient_descent(
                        model,
                        scale_pixels(pixels, dtype),
                        labels.long(),
                        radius=attack.radius,
                        steps=attack.steps,
                    )
                )
        right = self.margins()[:images] > 0
        return asdict(attack) | {
            "images": images,
            "accuracy": float(right.double().mean()),
            "robust": float(torch.cat(robust).double().mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state that continues this run: weights, momentum, epoch, random numbers.

        After the last epoch it has the weights only. The tensors are not copies: save or copy them
        before training continues.
        """
        state = {
            "digest": self.config.digest(),
            "seed": self.config.seed,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
        }
        if self.epoch == self.config.epochs:
            return state
        return state | {
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`. If another kind of device saved it, `moved_from` names that kind.

        Raises: CheckpointError if the state belongs to other settings.
        """
        check_settings(state, self.config)
        self.model.load_state_dict(state["model"])
        if state["epoch"] < self.config.epochs:
            self.optimizer.load_state_dict(deepcopy(state["optimizer"]))  # else buffers are shared
            self.order.set_state(state["order"].cpu())
            self._load_noise(state)
        self.step = self._training_step()  # a graph would continue with the old momentum
        self.epoch = state["epoch"]
        self._margins = None

    def _load_noise(self, state: Mapping[str, Any]) -> None:
        """Restore the augmentation's random numbers; another kind of device has other ones."""
        noise = state["noise"].cpu()
        if len(noise) == len(self.noise.get_state()):
            self.moved_from = None
            self.noise.set_state(noise)
            return
        self.moved_from = "cpu" if self.device.type == "cuda" else "cuda"
        self.noise.manual_seed(self.config.seed + AUGMENT_STREAM + state["epoch"])

    def _training_step(self) -> TrainingStep:
        return TrainingStep(
            self.config,
            model=self.model,
            optimizer=self.optimizer,
            images=self.train,
            noise=self.noise,
            cuda_graph=self.cuda_graph,
        )

    def _train_epoch(self) -> tuple[float, float]:
        """Train one pass over the shuffled images; return its mean loss and accuracy."""
        set_training_precision(self.config.precision)
        order = shuffled(len(self.train), self.config.data.shuffle, self.order).to(self.device)
        self.model.train()
        losses, hits = self.step.epoch(order)
        bad = (~losses.isfinite()).nonzero()  # once an epoch: the steps do not wait for it
        if len(bad):
            raise DivergedError(self.run, self.epoch, int(bad[0, 0]))
        return float(losses.sum()) / len(self.train), int(hits) / len(self.train)

    @torch.no_grad()
    def _evaluate(self, *, final: bool) -> dict[str, float]:
        """Measure the test set in full float32, or after the last epoch as `config.certify` says.

        Keeps the margins.
        """
        allow_tf32(False)
        model = self._certified_model() if final else self.model
        dtype = next(model.parameters()).dtype
        model.eval()
        batches = self.test.pixels.split(EVAL_BATCH if dtype == torch.float32 else CERTIFY_BATCH)
        with rescaled_once(model):
            scores = torch.cat([model(scale_pixels(batch, dtype)) for batch in batches])
        if not bool(scores.isfinite().all()):
            raise DivergedError(self.run, self.epoch, None)
        labels = self.test.labels
        self._margins = round_down(margins(scores, labels).double()).cpu()
        rows = {
            "test_loss": self._loss(scores, labels),
            "accuracy": correct(scores, labels),
            **{name: certified(scores, labels, radius) for name, radius in RADII.items()},
        }
        return {name: float(values.double().mean()) for name, values in rows.items()}

    def _certified_model(self) -> nn.Sequential:
        """Return the network in the arithmetic of `config.certify`, its rescaling included."""
        return self.model if self.config.certify == "float32" else deepcopy(self.model).double()

    def _loss(self, scores: Tensor, labels: Tensor) -> Tensor:
        loss = self.config.loss
        return offset_cross_entropy(
            scores, labels, offset=loss.offset, temperature=loss.temperature
        )


def check_settings(state: Mapping[str, Any], config: TrainConfig) -> None:
    """Check that a state was saved with these settings. Raises: CheckpointError."""
    saved, wanted = (state["digest"], state["seed"]), (config.digest(), config.seed)
    if saved != wanted:
        raise CheckpointError(
            f"the state is of settings {saved[0]} with seed {saved[1]}, "
            f"the run has {wanted[0]} with seed {wanted[1]}"
        )
