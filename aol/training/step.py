"""The training step: images by index, augmentation, forward, loss, backward, update.

The host and the device exchange nothing during an epoch, and every full batch has the same shapes,
so on CUDA the step is captured as a graph and replayed.
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

WARMUP_STEPS = 3  # before the capture: libraries allocate and choose kernels in them

Step = Callable[[Tensor], tuple[Tensor, Tensor]]


class GraphedStep:
    """A step that is captured as a CUDA graph after `WARMUP_STEPS` calls and replayed from then on.

    All tensors but the batch must stay where they are: make a new one when weights, momentum or
    the learning rate are replaced. Warm-up and capture share a stream, on which libraries have
    made their workspaces by then.
    """

    def __init__(self, step: Step, generator: torch.Generator) -> None:
        self.step, self.generator = step, generator
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step's result, valid until the next call."""
        if self.graph is None and self.calls < WARMUP_STEPS:
            self.calls += 1
            return self._warm_up(batch)
        if self.graph is None:
            self.graph = self._capture(batch)
        self.batch.copy_(batch)
        self.graph.replay()
        return self.result

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream of warm-up and capture."""
        return torch.cuda.Stream()

    def _warm_up(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            result = self.step(batch)
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def _capture(self, batch: Tensor) -> torch.cuda.CUDAGraph:
        self.batch = batch.clone()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with gc_disabled(), torch.cuda.graph(graph, stream=self.stream):
            self.result = self.step(self.batch)
        return graph


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable garbage collection: freeing an old graph would invalidate a capture."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class TrainingStep:
    """One step of SGD on the images of given indices, in place on the model.

    With `cuda_graph` it is captured as a graph on CUDA. The graph and the step refer to each other;
    `close` drops the graph and frees its memory.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        images: Images,
        noise: torch.Generator,
        cuda_graph: bool = True,
    ) -> None:
        self.config, self.model, self.optimizer = config, model, optimizer
        self.images, self.noise = images, noise
        self.on_cuda = images.pixels.device.type == "cuda"
        graphed = self.on_cuda and cuda_graph
        self.full_batch_step: Step = GraphedStep(self, noise) if graphed else self
        self.learning_rate = 0.0

    def __call__(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Update the weights; return the batch's summed loss and number of correct images.

        Shapes: (N,) int64 -> () float64, () int64.
        """
        self.optimizer.zero_grad()  # first: the forward pass has its memory
        images, labels = scale_pixels(self.images.pixels[batch]), self.images.labels[batch]
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
        """Take a step per batch of `order`; return each batch's summed loss and all correct images.

        Shapes: (images,) int64 -> (batches,) float64, () int64.
        """
        self._renew_graph()
        batches = order.split(self.config.batch_size)
        losses = torch.zeros(len(batches), dtype=torch.float64, device=order.device)
        hits = torch.zeros((), dtype=torch.int64, device=order.device)
        for position, batch in enumerate(batches):
            step = self.full_batch_step if len(batch) == self.config.batch_size else self
            losses[position], found = step(batch)
            hits += found
        return losses, hits

    def close(self) -> None:
        """Drop the graph; the step still works without it."""
        self.full_batch_step = self

    def _renew_graph(self) -> None:
        """Drop a graph of another learning rate: the rate is a constant in it."""
        rate = self.optimizer.param_groups[0]["lr"]
        if rate != self.learning_rate and isinstance(self.full_batch_step, GraphedStep):
            self.full_batch_step = GraphedStep(self, self.noise)
        self.learning_rate = rate

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.precision == "bf16":
            device = self.images.pixels.device.type
            return torch.autocast(device, torch.bfloat16, cache_enabled=False)  # for graphs
        return nullcontext()

    def _rescaling(self) -> AbstractContextManager[None]:
        """Rescale all layers together on CUDA, where kernel launches cost more than copies."""
        if not self.on_cuda:
            return nullcontext()
        applied = torch.bfloat16 if self.config.precision == "bf16" else None
        return rescaled_together(self.model, applied)


def scale_pixels(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return uint8 pixels as floats in [0, 1], channels last."""
    return pixels.contiguous(memory_format=torch.channels_last).to(dtype).div_(255)
