"""The training step: images by index, augmentation, forward, loss, backward, update.

An epoch of steps says nothing to the host and asks nothing of it, and every full batch has the
same shapes, so on CUDA the step is recorded as a graph and replayed.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from aol.config import TrainConfig
from aol.data.augment import augment
from aol.data.datasets import Images
from aol.layers.modules import rescaled_together
from aol.training.loss import offset_cross_entropy
from aol.training.metrics import correct

WARM_UP = 3  # steps before a recording: libraries allocate and choose kernels in them

Step = Callable[[Tensor], tuple[Tensor, Tensor]]


class Replay:
    """A step that on CUDA is recorded after `WARM_UP` calls and replayed from then on.

    Its tensors but the batch must stay where they are: make a new one when weights, momentum or
    the learning rate are replaced. Warm-up and recording share a stream, on which libraries have
    made their workspaces by then.
    """

    def __init__(self, step: Step, generator: torch.Generator) -> None:
        self.step, self.generator = step, generator
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The step's result, valid until the next call."""
        if self.graph is None and self.calls < WARM_UP:
            self.calls += 1
            return self._warm_up(batch)
        if self.graph is None:
            self.graph = self._recorded(batch)
        self.batch.copy_(batch)
        self.graph.replay()
        return self.result

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """That of the warm-up and of the recording."""
        return torch.cuda.Stream()

    def _warm_up(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _recorded(self, batch: Tensor) -> torch.cuda.CUDAGraph:
        self.batch = batch.clone()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with uncollected(), torch.cuda.graph(graph, stream=self.stream):
            self.result = self.step(self.batch)
        return graph


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected inside the block: the end of an old graph would spoil a recording."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class TrainingStep:
    """One step of SGD on the images of given indices; the weights are the model's own.

    `record` says whether it is recorded on CUDA. A recording holds the step, and the step it:
    `close` ends that, and with it the graph's memory.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        images: Images,
        noise: torch.Generator,
        record: bool = True,
    ) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.images, self.noise = images, noise
        self.on_cuda = images.pixels.device.type == "cuda"
        self.record = record
        self.full: Step = Replay(self, noise) if self.on_cuda and record else self
        self.rate = 0.0

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights; the sum of the batch's losses and its hits, on the device.

        Shapes: (N,) int64 -> () float64, () int64.
        """
        self.optimizer.zero_grad()  # first: the forward pass has its memory
        images, labels = scaled(self.images.pixels[batch]), self.images.labels[batch]
        if self.config.data.augment:
            images = augment(images, self.noise)
        with self._autocast(), self._rescaling():
            scores = self.model(images)
        loss = self.config.loss
        rows = offset_cross_entropy(
            scores.float(), labels, offset=loss.offset, temperature=loss.temperature
        )
        rows.mean().backward()
        self.optimizer.step()
        return rows.detach().sum().double(), correct(scores.detach(), labels).sum()

    def epoch(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """A step per batch of `order`: each batch's sum of losses, and the epoch's hits.

        Shapes: (images,) int64 -> (batches,) float64, () int64.
        """
        self._follow_rate()
        batches = order.split(self.config.batch_size)
        losses = torch.zeros(len(batches), dtype=torch.float64, device=order.device)
        hits = torch.zeros((), dtype=torch.int64, device=order.device)
        for position, batch in enumerate(batches):
            step = self.full if len(batch) == self.config.batch_size else self
            losses[position], found = step(batch)
            hits += found
        return losses, hits

    def close(self) -> None:
        """Let the recording go; the step still works, unrecorded."""
        self.full = self

    def _follow_rate(self) -> None:
        """A recording holds the learning rate that it was made with."""
        rate = self.optimizer.param_groups[0]["lr"]
        if rate != self.rate and isinstance(self.full, Replay):
            self.full = Replay(self, self.noise)
        self.rate = rate

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            device = self.images.pixels.device.type
            return torch.autocast(device, torch.bfloat16, cache_enabled=False)  # for recordings
        return nullcontext()

    def _rescaling(self) -> AbstractContextManager[None]:
        """Stacked where launches cost more than copies; the CPU has enough to do per layer."""
        if not self.on_cuda:
            return nullcontext()
        applied = torch.bfloat16 if self.config.precision == "bf16" else None
        return rescaled_together(self.model, applied)


def scaled(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels as floats in [0, 1], channels last."""
    return pixels.contiguous(memory_format=torch.channels_last).to(dtype).div_(255)
