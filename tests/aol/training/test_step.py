import gc
import math
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aol.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from aol.layers.modules import rescaled_together
from aol.models.architectures import build_model
from aol.training import step
from aol.training.loss import offset_cross_entropy
from aol.training.step import WARMUP_STEPS, GraphedStep, TrainingStep
from aol.training.trainer import Trainer

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    model=ModelConfig(kind="patchwise", width=1 / 16),
    data=DataConfig(name="digits", train_limit=230, test_limit=20),
    loss=LossConfig(offset=math.sqrt(2), temperature=1 / 4),
    optimizer=OptimizerConfig(learning_rate=3e-3, drops=(0.5,)),
    epochs=2,
    batch_size=40,
)
# Operations that make the host wait for a device: a number from a tensor, a shape from its values,
# a tensor from numbers of the host ("lift_fresh").
WAITS = {
    "lift_fresh",
    "mask",
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "repeat_interleave",
}
# Methods that make the host wait without an operation that is visible if the device is the CPU.
METHODS = (
    "cpu",
    "cuda",
    "numpy",
    "tolist",
    "item",
    "__array__",
    "__bool__",
    "__float__",
    "__int__",
)
LAYOUT = {2: torch.contiguous_format, 4: torch.channels_last}
NARROW = [
    ModelConfig(kind="patchwise", width=3 / 8),  # 3 x 3 kernels by the fewest products
    ModelConfig(kind="fc", width=1 / 64),
    ModelConfig(kind="conv", width=1 / 8),
    ModelConfig(kind="std", width=1 / 8),
]


class Dispatched(TorchDispatchMode):
    """
    Counts the operations in its block, and as "mask" those that index with a boolean mask.
    """

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        self.counts[operation.overloadpacket.__name__] += 1
        indices = [index for part in arguments if isinstance(part, list | tuple) for index in part]
        masks = [index for index in indices if getattr(index, "dtype", None) == torch.bool]
        self.counts["mask"] += operation.overloadpacket.__name__.startswith("index") and len(masks)
        return operation(*arguments, **(keywords or {}))


@pytest.fixture(autouse=True)
def no_replays():
    FakeGraph.replays = 0


@pytest.fixture
def trainer(data_root):
    return lambda config=CONFIG: Trainer(config, data_root=data_root, device=CPU)


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


class WaitError(Exception):
    """
    Raised when the host would wait for its device.
    """


@contextmanager
def waits_refused():
    """
    Raise an error for every operation in the block that would make the host wait for its device.
    """
    move = torch.Tensor.to

    def refusing(name):
        def refuse(tensor, *arguments, **keywords):
            raise WaitError(name)

        return refuse

    def only_types(tensor, *arguments, **keywords):
        if any(
            isinstance(target, str | torch.device) for target in (*arguments, *keywords.values())
        ):
            raise WaitError("to another device")
        return move(tensor, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        for name in METHODS:
            patch.setattr(torch.Tensor, name, refusing(name))
        patch.setattr(torch.Tensor, "to", only_types)
        with Dispatched() as dispatched:
            yield dispatched
    if found := WAITS & set(+dispatched.counts):
        raise WaitError(found)


@pytest.mark.parametrize(
    ("model", "precision"),
    [
        pytest.param(CONFIG.model, "float32", id="narrow-float32"),
        pytest.param(CONFIG.model, "bf16", id="narrow-bf16"),
        pytest.param(NARROW[0], "float32", id="by hand-float32", marks=pytest.mark.slow),
        pytest.param(NARROW[0], "bf16", id="by hand-bf16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("on_cuda", [False, True])
def test_an_epoch_of_steps_never_waits_for_the_device(
    trainer, as_on_cuda, model, precision, on_cuda
):
    """
    Constants are made in the first step: a recording comes later.
    """
    run = trainer(replace(CONFIG, model=model, precision=precision))
    run.step(torch.arange(40))
    if on_cuda:
        as_on_cuda(run)
        run.step(torch.arange(40))

    with waits_refused() as dispatched:
        run.step.epoch(torch.arange(len(run.train)))

    assert dispatched.counts["convolution"] > 0
    assert dispatched.counts["_fused_sgd_"] > 0
    assert FakeGraph.replays == (5 - WARMUP_STEPS if on_cuda else 0)


@pytest.mark.parametrize(
    "wait",
    [
        lambda value: value.cpu(),
        lambda value: value.to("cpu"),
        lambda value: value.to(device=CPU),
        lambda value: value.numpy(),
        np.asarray,
        lambda value: value.tolist(),
        lambda value: value.sum().item(),
        lambda value: float(value.sum()),
        lambda value: bool(value.any()),
        lambda value: value[value > 1],
        lambda value: value + torch.tensor([1.0, 2.0]),
    ],
)
def test_every_operation_that_waits_is_detected(wait):
    with pytest.raises(WaitError), waits_refused():
        wait(torch.arange(2.0))


def test_every_full_step_has_the_same_shapes(trainer):
    """
    A recording needs the same operations on the same shapes, whatever the images.
    """
    run = trainer()
    traces = []
    for batch in torch.arange(120).split(40):
        with Dispatched() as dispatched:
            run.step(batch)
        traces.append(dispatched.counts)

    assert traces[1] == traces[2]


@pytest.mark.parametrize("config", NARROW, ids=lambda config: config.kind)
def test_stacked_rescaling_is_layer_by_layer_rescaling(config):
    """
    Scores and every gradient, in float64 to the last digits.
    """
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    results = []
    for together in (nullcontext, rescaled_together):
        model = build_model(config, 10, torch.Generator().manual_seed(0)).double()
        noise = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=noise).double()
        with nullcontext() if together is nullcontext else together(model):
            scores = model(images)
        scores.square().sum().backward()
        results.append((scores.detach(), [parameter.grad for parameter in model.parameters()]))

    (scores, gradients), (stacked_scores, stacked_gradients) = results
    torch.testing.assert_close(stacked_scores, scores, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(stacked_gradients, gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@pytest.mark.parametrize("config", NARROW, ids=lambda config: config.kind)
def test_weights_cast_together_are_weights_cast_by_autocast(config):
    """
    Scores and every gradient bit by bit, with a cast per shape in place of one per layer.
    """
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    results, casts = [], []
    for dtype in (None, torch.bfloat16):
        model = noisy(config)
        with Dispatched() as dispatched:
            with (
                torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
                rescaled_together(model, dtype),
            ):
                scores = model(images)
            scores.float().square().sum().backward()
        casts.append(dispatched.counts["_to_copy"])
        results.append([scores.detach(), *(parameter.grad for parameter in model.parameters())])

    weights = [layer.weight for layer in model if hasattr(layer, "_rescale")]
    fewer = len(weights) - len({weight.shape for weight in weights})
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert casts[0] - casts[1] >= 2 * fewer  # forward and backward


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("config", NARROW, ids=lambda config: config.kind)
def test_stacked_weights_are_channels_last_as_images_are(config, dtype):
    """
    A library that wants them so would otherwise copy each of them in every step.
    """
    model = build_model(config, 10, torch.Generator().manual_seed(0))
    with rescaled_together(model, dtype):
        kept = [layer.rescaled() for layer in model if hasattr(layer, "_rescale")]

    assert all(weight.is_contiguous(memory_format=LAYOUT[weight.ndim]) for weight in kept)
    assert {weight.dtype for weight in kept} == {dtype or torch.float32}


def noisy(config):
    """
    Return a network away from its initial weights, where gradients would have the signs of rounding
    errors.
    """
    model = build_model(config, 10, torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                size = 0.05 / weight[0].numel() ** 0.5
                weight.add_(torch.randn(weight.shape, generator=noise), alpha=size)
    return model


# In bf16 a last digit of the rescaling can round the other way, which small biases show.
TOLERANCES = [
    ("float32", 2e-5, 1e-6),
    pytest.param("bf16", 0.35, 0.02, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("precision", "each", "all_in_all"), TOLERANCES)
@pytest.mark.parametrize(
    "config",
    [pytest.param(NARROW[0], marks=pytest.mark.slow), *NARROW[1:]],
    ids=lambda config: config.kind,
)
def test_stacked_steps_with_the_fused_optimiser_train_as_single_ones_without(
    trainer, as_on_cuda, config, precision, each, all_in_all
):
    """
    As on CUDA, recording included, against the plainest way: after five steps, the second half of
    them replayed, weights have moved by the same.
    """
    fast = OptimizerConfig(learning_rate=0.1)
    settings = replace(CONFIG, model=config, precision=precision, optimizer=fast)
    runs = [trainer(settings) for _ in range(2)]
    start = noisy(config).state_dict()
    for run in runs:
        run.model.load_state_dict(start)
    ours, plain = runs
    as_on_cuda(ours)
    for group in plain.optimizer.param_groups:
        group.update(fused=False, foreach=False)
    with Dispatched() as fused:
        ours.step.epoch(torch.arange(200))
    with Dispatched() as unfused:
        plain.step.epoch(torch.arange(200))

    assert FakeGraph.replays == 5 - WARMUP_STEPS
    assert fused.counts["_fused_sgd_"] == 5 * 2
    assert not unfused.counts["_fused_sgd_"]
    changes = [(weights(plain)[name] - start[name]).norm() for name in start]
    apart = [(weights(ours)[name] - weights(plain)[name]).norm() for name in start]
    assert math.hypot(*apart) <= all_in_all * math.hypot(*changes)
    for name, far, change in zip(start, apart, changes, strict=True):
        assert far <= each * max(change, 1e-2 * max(changes)), name


def test_stacked_weights_are_dropped_after_the_block_even_after_an_error():
    model = build_model(NARROW[2], 10, torch.Generator().manual_seed(0))

    def fail():
        with rescaled_together(model):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(getattr(layer, "_kept", None) is None for layer in model)


class FakeGraph:
    """
    Keeps the step instead of its kernels; a replay runs it on the recorded batch again.
    """

    replays = 0

    def register_generator_state(self, generator):
        self.generator = generator

    def replay(self):
        FakeGraph.replays += 1
        for kept, new in zip(self.replay_of.result, self.step(self.replay_of.batch), strict=True):
            kept.copy_(new)


@pytest.fixture
def recording(monkeypatch):
    """
    CUDA's recording without CUDA. As on a GPU, nothing is computed while a step is recorded.
    """

    class Stream:
        def wait_stream(self, other):
            pass

    @contextmanager
    def graph(recorded, stream):
        assert stream is recorded.replay_of.stream
        assert not gc.isenabled()
        replay = recorded.replay_of
        recorded.step = replay.step
        replay.step = lambda batch: (
            torch.zeros((), dtype=torch.float64),
            torch.zeros((), dtype=torch.int64),
        )
        yield
        replay.step = recorded.step

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", graph)

    def record(run):
        run.step.full_batch_step = GraphedStep(run.step, run.noise)
        bound = type("Graph", (FakeGraph,), {"replay_of": run.step.full_batch_step})
        monkeypatch.setattr(torch.cuda, "CUDAGraph", bound)

    return record


@pytest.fixture
def as_on_cuda(recording):
    """
    Return a function that makes a run on the CPU take the steps that it would take on CUDA.
    """

    def prepare(run):
        run.step.on_cuda = True
        run.step.learning_rate = run.optimizer.param_groups[0][
            "lr"
        ]  # else it makes a recording of its own
        recording(run)

    return prepare


def test_replayed_steps_train_as_eager_steps(trainer, recording):
    """
    Five full batches and a small one: three to warm up, two replayed, the small one eager.
    """
    run, eager = trainer(), trainer()
    recording(run)
    run.step.learning_rate = run.optimizer.param_groups[0]["lr"]
    order = torch.arange(len(run.train))
    losses, hits = run.step.epoch(order)
    expected_losses, expected_hits = eager.step.epoch(order)

    assert FakeGraph.replays == 5 - WARMUP_STEPS
    assert run.step.full_batch_step.graph.generator is run.noise
    assert torch.equal(losses, expected_losses)
    assert torch.equal(hits, expected_hits)
    assert all(torch.equal(value, weights(eager)[name]) for name, value in weights(run).items())


def test_a_step_is_recorded_on_its_warm_up_stream_without_garbage_collection(trainer, recording):
    run = trainer()
    recording(run)
    for batch in torch.arange(len(run.train)).split(run.config.batch_size)[:5]:
        run.step.full_batch_step(batch)

    assert FakeGraph.replays == 2
    assert gc.isenabled()


def test_recording_can_be_turned_off(trainer, monkeypatch):
    """
    This includes CUDA, for machines on which recording is not possible.
    """
    run = trainer()
    on_cuda = type("OnCuda", (), {"pixels": type("P", (), {"device": torch.device("cuda")})})
    parts = {"model": run.model, "optimizer": run.optimizer, "images": on_cuda, "noise": run.noise}
    recorded = TrainingStep(run.config, **parts)
    eager = TrainingStep(run.config, **parts, cuda_graph=False)

    assert isinstance(recorded.full_batch_step, GraphedStep)
    assert eager.full_batch_step is eager
    recorded.close()
    assert recorded.full_batch_step is recorded


def test_the_recording_is_released_after_training(trainer, recording):
    run = trainer(replace(CONFIG, optimizer=OptimizerConfig(drops=())))
    recording(run)
    run.step.learning_rate = run.config.learning_rate(0)
    epochs = run.epochs()
    next(epochs)
    during = run.step.full_batch_step
    list(epochs)

    assert isinstance(during, GraphedStep)
    assert run.step.full_batch_step is run.step


def test_the_cpu_records_nothing(trainer):
    run = trainer()

    assert run.step.full_batch_step is run.step
    assert not run.step.on_cuda


def test_a_new_learning_rate_or_momentum_needs_a_new_recording(trainer):
    run = trainer()
    first = run.step.full_batch_step = GraphedStep(run.step, run.noise)
    run.step._renew_graph()
    second = run.step.full_batch_step
    run.step._renew_graph()
    kept = run.step.full_batch_step
    run.optimizer.param_groups[0]["lr"] = 1.0
    run.step._renew_graph()

    assert second is not first
    assert kept is second
    assert run.step.full_batch_step is not second
    before = run.step
    run.load_state_dict(run.state_dict())
    assert run.step is not before


def test_bf16_keeps_weights_momentum_and_the_rescaling_in_float32(trainer):
    run = trainer(replace(CONFIG, precision="bf16"))
    seen = []
    for layer in run.model:
        if hasattr(layer, "_rescale"):
            rescale = layer._rescale
            layer._rescale = lambda weight, rescale=rescale: (
                seen.append(rescale(weight).dtype),
                rescale(weight),
            )[1]
    before = weights(run)
    losses, _ = run.step.epoch(torch.arange(80))

    assert losses.isfinite().all()
    assert set(seen) == {torch.float32}
    assert all(value.dtype == torch.float32 for value in weights(run).values())
    state = run.optimizer.state.values()
    assert {entry["momentum_buffer"].dtype for entry in state} == {torch.float32}
    assert any(not torch.equal(before[name], value) for name, value in weights(run).items())


@pytest.mark.parametrize("on_cuda", [False, True])
def test_layers_of_one_shape_are_rescaled_together_on_cuda_only(
    trainer, as_on_cuda, monkeypatch, on_cuda
):
    run, models = trainer(), []

    def together(model, dtype):
        models.append(model)
        return rescaled_together(model, dtype)

    monkeypatch.setattr(step, "rescaled_together", together)
    if on_cuda:
        as_on_cuda(run)
    run.step(torch.arange(40))

    assert models == ([run.model] if on_cuda else [])


def test_bf16_computes_the_loss_in_float32_and_keeps_no_casts(trainer, monkeypatch):
    """
    Autocast would keep weights that it has cast, and a recording would go on using them.
    """
    run, scores_are, caches = trainer(replace(CONFIG, precision="bf16")), [], []

    def loss(scores, labels, **settings):
        scores_are.append(scores.dtype)
        return offset_cross_entropy(scores, labels, **settings)

    def note_cache(*_):
        assert torch.is_autocast_enabled("cpu")
        caches.append(torch.is_autocast_cache_enabled())

    monkeypatch.setattr(step, "offset_cross_entropy", loss)
    run.model.register_forward_hook(note_cache)
    run.step(torch.arange(40))

    assert scores_are == [torch.float32]
    assert caches == [False]
