import io
import math
import pickle
from copy import deepcopy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from aol.certification.certificate import RADII
from aol.certification.singular_values import Spectrum, share_nearly_orthogonal
from aol.config import DataConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from aol.data.datasets import Images
from aol.errors import CheckpointError
from aol.models.architectures import build_model, patchwise
from aol.training import optimizer
from aol.training import trainer as train
from aol.training.loss import offset_cross_entropy
from aol.training.metrics import certified, correct, margins
from aol.training.optimizer import make_optimizer, set_learning_rate
from aol.training.result import evaluate_result
from aol.training.step import scale_pixels
from aol.training.trainer import DivergedError, Trainer
from tests.support.golden_recipe import (
    drawn_batch,
    drawn_parameters,
    golden,
    images_from_tf,
    load_parameters,
    text,
    weight_to_tf,
)

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    model=ModelConfig(kind="patchwise", width=1 / 16),
    data=DataConfig(name="digits", train_limit=100, test_limit=80),
    loss=LossConfig(offset=math.sqrt(2), temperature=1 / 4),
    optimizer=OptimizerConfig(learning_rate=3e-3, drops=(0.5,)),
    epochs=4,
    batch_size=40,
    seed=3,
)
ONE_EPOCH = replace(CONFIG, epochs=1)
UNTOUCHED = replace(
    ONE_EPOCH,
    data=replace(CONFIG.data, augment=False),
    optimizer=OptimizerConfig(learning_rate=1e-30),  # no step moves a float32 weight
)
LEARNING = replace(
    CONFIG,
    model=ModelConfig(kind="patchwise", width=1 / 8),
    data=DataConfig(name="digits", train_limit=400, augment=False),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    epochs=3,
    batch_size=20,
)
TEST_METRICS = ["test_loss", "accuracy", *RADII]


@pytest.fixture
def trainer(data_root):
    return lambda config=CONFIG, **more: Trainer(config, data_root=data_root, device=CPU, **more)


@pytest.fixture(scope="module")
def learned(data_root):
    """
    Return a trained trainer and the metrics of its epochs.
    """
    run = Trainer(LEARNING, data_root=data_root, device=CPU)
    return run, list(run.epochs())


def untimed(metrics):
    values = asdict(metrics)
    del values["seconds"], values["images_per_s"]
    return values


def saved(state):
    """
    Return the checkpoint after saving it to a file and loading it.
    """
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


# --- the authors' optimiser ---


@pytest.mark.parametrize(
    ("file", "dtype", "bound"),
    [
        ("trajectory_float64", torch.float64, 1e-12),
        ("trajectory_float32", torch.float32, 1e-6),
    ],
)
@pytest.mark.parametrize(("schedule", "steps"), [("const", 5), ("drop", 6)])
def test_steps_equal_the_authors(file, dtype, bound, schedule, steps):
    """
    Weights and losses of every step, at a rate of 0.1 and, in "drop", 0.01 from the fourth.

    Keras's momentum is the float32 nearest to 0.9, also in its float64 file.
    """
    theirs = golden(file)
    model = patchwise(1, 10, channels=16, convolutions=2, dense_layers=2)
    shapes = text(theirs["kernel_shapes"])
    layers = load_parameters(model, drawn_parameters(shapes, seed=99, noise=2.0), dtype)
    images, labels = drawn_batch(seed=8, count=16, classes=10)
    images, labels = images_from_tf(images, dtype), torch.from_numpy(labels)
    config = TrainConfig(
        model=ModelConfig(kind="patchwise"),
        data=DataConfig(name="cifar10"),
        loss=LossConfig(offset=math.sqrt(2), temperature=1 / 4),
        optimizer=OptimizerConfig(learning_rate=0.1, momentum=float(np.float32(0.9))),
    )
    optimizer = make_optimizer(model, config)

    for step in range(1, steps + 1):
        if schedule == "drop":
            set_learning_rate(optimizer, 0.1 if step < 4 else 0.01)
        loss = offset_cross_entropy(
            model(images), labels, offset=config.loss.offset, temperature=config.loss.temperature
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        log = text(theirs[f"{schedule}_step{step}_logs"])
        assert loss.item() == pytest.approx(log["1.41-OffsetXent"], abs=bound)
        for index, layer in enumerate(layers):
            kernel = theirs[f"{schedule}_step{step}_K{index}"]
            assert np.abs(weight_to_tf(layer.weight) - kernel).max() <= bound
            bias = theirs[f"{schedule}_step{step}_b{index}"]
            assert np.abs(layer.bias.detach().numpy() - bias).max() <= bound

    log = text(theirs[f"{schedule}_eval"])
    with torch.no_grad():
        scores = model(images)
    assert correct(scores, labels).double().mean().item() == log["acc"]
    assert certified(scores, labels, 36 / 255).double().mean().item() == log["cra0.141"]


def test_a_drop_without_carried_momentum_is_another_trajectory():
    """
    The momentum buffer is scaled with the rate; an unscaled one is off by 4e-2 in the golden run.
    """
    parameter = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.Module()
    model.weight = parameter
    optimizer = make_optimizer(model, replace(CONFIG, optimizer=OptimizerConfig(l2=0.0)))
    parameter.grad = torch.ones(1)
    set_learning_rate(optimizer, 1.0)
    optimizer.step()  # velocity 1 at rate 1
    set_learning_rate(optimizer, 0.1)

    assert optimizer.state[parameter]["momentum_buffer"].item() == pytest.approx(10.0)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1}
    set_learning_rate(optimizer, 0.1)
    assert optimizer.state[parameter]["momentum_buffer"].item() == pytest.approx(10.0)


# --- metrics of an epoch ---


def loss_by_hand(scores, labels, loss):
    """
    Per row, in float64 with numpy.
    """
    scores = scores.double().numpy().copy()
    rows = np.arange(len(scores))
    scores[rows, labels] -= loss.offset
    z = scores / loss.temperature
    top = z.max(1)
    return loss.temperature * (np.log(np.exp(z - top[:, None]).sum(1)) + top - z[rows, labels])


def test_test_metrics_equal_an_evaluation_by_hand(learned):
    run, (*_, last) = learned
    with torch.no_grad():
        scores = run.model(run.test.pixels.float() / 255)
    labels = run.test.labels.numpy()
    runner_up = np.array(
        [
            max(row[:label] + row[label + 1 :])
            for row, label in zip(scores.tolist(), labels, strict=True)
        ]
    )
    margin = scores.numpy()[np.arange(len(labels)), labels] - runner_up

    assert last.test_loss == pytest.approx(
        loss_by_hand(scores, labels, CONFIG.loss).mean(), rel=1e-5
    )
    assert last.accuracy == (scores.numpy().argmax(1) == labels).mean()
    for name, radius in [("cra_36", 36 / 255), ("cra_72", 72 / 255), ("cra_108", 108 / 255)]:
        assert getattr(last, name) == (margin > math.sqrt(2) * radius).mean()
    assert last.cra_1 == (margin > math.sqrt(2)).mean()
    assert 0 < last.cra_1 < last.cra_108 < last.cra_72 < last.cra_36 < last.accuracy < 1


def test_training_metrics_weight_every_image_equally(trainer):
    """
    100 images in batches of 40, 40 and 20, and a rate so small that the weights stay.
    """
    run = trainer(UNTOUCHED)
    (metrics,) = run.epochs()
    with torch.no_grad():
        scores = run.model(scale_pixels(run.train.pixels))
    rows = loss_by_hand(scores, run.train.labels.numpy(), CONFIG.loss)

    assert metrics.train_loss == pytest.approx(rows.mean(), rel=1e-5)
    assert metrics.train_accuracy == pytest.approx(
        (scores.argmax(1) == run.train.labels).double().mean().item()
    )


def test_one_step_is_sgd_by_hand(trainer):
    """
    From the config's own seed: initial weights, the batch's mean loss, Nesterov, L2 on kernels.
    """
    config = replace(UNTOUCHED, batch_size=100, optimizer=OptimizerConfig(learning_rate=0.1))
    run = trainer(config)
    model = build_model(config.model, 10, torch.Generator().manual_seed(config.seed))
    assert same(weights(run), model.state_dict())
    rows = offset_cross_entropy(
        model(scale_pixels(run.train.pixels)),
        run.train.labels,
        offset=config.loss.offset,
        temperature=config.loss.temperature,
    )
    rows.mean().backward()
    list(run.epochs())

    for name, parameter in model.named_parameters():
        gradient = parameter.grad + (1e-3 * parameter.detach() if "weight" in name else 0)
        expected = parameter.detach() - 0.1 * 1.9 * gradient
        torch.testing.assert_close(run.model.state_dict()[name], expected, rtol=1e-4, atol=1e-6)


def test_every_image_is_used_once_per_epoch_in_another_order(trainer, monkeypatch):
    run = trainer(replace(UNTOUCHED, epochs=2))
    seen = []

    def record(pixels, *dtype):
        seen.append(pixels)
        return scale_pixels(pixels, *dtype)

    monkeypatch.setattr("aol.training.step.scale_pixels", record)
    orders = []
    for _ in run.epochs():
        epoch = torch.cat(seen[:3])
        orders.append(epoch)
        seen.clear()

    assert not torch.equal(orders[0], orders[1])
    for order in orders:
        assert torch.equal(
            order.flatten(1).long().sum(1).sort().values,
            run.train.pixels.flatten(1).long().sum(1).sort().values,
        )


def test_epochs_count_from_one_and_report_their_rate(trainer):
    reported = list(trainer().epochs())

    assert [metrics.epoch for metrics in reported] == [1, 2, 3, 4]
    assert [metrics.learning_rate for metrics in reported] == pytest.approx(
        [3e-3, 3e-3, 3e-4, 3e-4]
    )
    assert all(metrics.images_per_s > 0 and metrics.seconds > 0 for metrics in reported)


def test_training_learns(learned):
    _, (first, *_, last) = learned

    assert last.train_loss < 0.7 * first.train_loss
    assert last.test_loss < 0.8 * first.test_loss
    assert last.accuracy > 0.6  # chance is 0.1


def test_augmentation_changes_training_and_not_evaluation(trainer):
    plain = replace(UNTOUCHED, data=replace(CONFIG.data, augment=False))
    augmented = replace(UNTOUCHED, data=replace(CONFIG.data, augment=True))
    (without,) = trainer(plain).epochs()
    (with_it,) = trainer(augmented).epochs()

    assert with_it.train_loss != without.train_loss
    assert with_it.test_loss == without.test_loss


@pytest.mark.parametrize("eval_every", [2, 3])
def test_test_metrics_are_absent_between_evaluations(trainer, eval_every):
    reported = list(trainer(replace(CONFIG, eval_every=eval_every)).epochs())

    for metrics in reported:
        evaluated = metrics.epoch % eval_every == 0 or metrics.epoch == 4
        assert all((getattr(metrics, name) is not None) == evaluated for name in TEST_METRICS)
        names = ["learning_rate", "train_loss", "train_accuracy", "images_per_s", "seconds"]
        assert list(metrics.values()) == (names + TEST_METRICS if evaluated else names)


def test_rare_evaluation_does_not_change_training(trainer):
    often = list(trainer().epochs())
    rarely = list(trainer(replace(CONFIG, eval_every=4)).epochs())

    assert [m.train_loss for m in often] == [m.train_loss for m in rarely]
    assert untimed(often[-1]) == untimed(rarely[-1])


def test_values_leave_out_the_epoch(trainer):
    (metrics,) = trainer(ONE_EPOCH).epochs()

    assert metrics.values() == {k: v for k, v in asdict(metrics).items() if k != "epoch"}


# --- margins ---


def test_margins_agree_with_accuracy_and_cra(learned):
    run, (*_, last) = learned
    found = run.margins()

    assert (found.shape, found.dtype, found.device.type) == ((355,), torch.float32, "cpu")
    assert (found > 0).double().mean().item() == last.accuracy
    for name, radius in RADII.items():
        assert (found > math.sqrt(2) * radius).double().mean().item() == getattr(last, name)


def test_margins_are_in_the_order_of_the_test_set(trainer):
    run = trainer(ONE_EPOCH)
    list(run.epochs())
    with torch.no_grad():
        alone = torch.cat(
            [
                margins(
                    run.model(scale_pixels(run.test.pixels[i : i + 1])), run.test.labels[i : i + 1]
                )
                for i in range(len(run.test))
            ]
        )

    torch.testing.assert_close(run.margins(), alone, rtol=1e-4, atol=1e-5)


def test_margins_without_training_are_of_the_initial_weights(trainer):
    run = trainer()
    with torch.no_grad():
        expected = margins(run.model(scale_pixels(run.test.pixels)), run.test.labels)

    torch.testing.assert_close(run.margins(), expected, rtol=1e-4, atol=1e-5)


def test_margins_are_of_the_current_weights_also_between_evaluations(trainer):
    """
    After epoch 3 of a run that evaluates after epochs 2 and 4.
    """
    run = trainer(replace(CONFIG, eval_every=2))
    for metrics in run.epochs():
        if metrics.epoch == 3:
            break
    with torch.no_grad():
        expected = margins(run.model(scale_pixels(run.test.pixels)), run.test.labels)

    torch.testing.assert_close(run.margins(), expected, rtol=1e-4, atol=1e-5)


def test_margins_are_updated_by_a_loaded_checkpoint(trainer):
    first, second = trainer(), trainer()
    list(first.epochs())
    before = second.margins()
    second.load_state_dict(saved(first.state_dict()))

    assert torch.equal(second.margins(), first.margins())
    assert not torch.equal(second.margins(), before)


def test_large_test_sets_are_evaluated_in_batches(trainer, monkeypatch):
    run = trainer()
    whole = run.margins()
    run._margins = None
    monkeypatch.setattr(train, "EVAL_BATCH", 30)

    torch.testing.assert_close(run.margins(), whole, rtol=1e-4, atol=1e-5)


# --- stopping and resuming ---


def test_the_seed_determines_everything(trainer):
    first, again = list(trainer().epochs()), list(trainer().epochs())
    other = list(trainer(replace(CONFIG, seed=4)).epochs())

    assert [untimed(m) for m in first] == [untimed(m) for m in again]
    assert first[0].train_loss != other[0].train_loss


def test_the_largest_seed_works(trainer):
    (metrics,) = trainer(replace(ONE_EPOCH, seed=2**62 - 1)).epochs()

    assert metrics.epoch == 1


def test_every_allowed_seed_works(trainer):
    """
    The config allows seeds below 2**63.
    """
    (metrics,) = trainer(replace(ONE_EPOCH, seed=2**63 - 1)).epochs()

    assert metrics.epoch == 1


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(trainer, stop):
    """
    Results are equal bit for bit, with augmentation and a drop of the rate after epoch 2.
    """
    straight = trainer()
    expected = [untimed(metrics) for metrics in straight.epochs()]
    assert CONFIG.data.augment

    first = trainer()
    found = []
    for metrics in first.epochs():
        found.append(untimed(metrics))
        if metrics.epoch == stop:
            break
    second = trainer()
    second.load_state_dict(saved(first.state_dict()))
    found += [untimed(metrics) for metrics in second.epochs()]

    assert found == expected
    assert same(weights(second), weights(straight))
    assert torch.equal(second.margins(), straight.margins())


def test_a_run_stopped_after_every_epoch_equals_an_uninterrupted_one(trainer):
    expected = [untimed(metrics) for metrics in trainer().epochs()]
    found, state = [], None

    while len(found) < 4:
        run = trainer()
        if state is not None:
            run.load_state_dict(state)
        found.append(untimed(next(run.epochs())))
        state = saved(run.state_dict())

    assert found == expected


@pytest.mark.parametrize(("length", "moved_from"), [(16, "cuda"), (5056, None)])
def test_a_state_saved_on_a_gpu_continues_on_the_cpu(trainer, length, moved_from):
    """
    CUDA's generator has a state of 16 bytes. Its random numbers cannot be continued on the CPU.
    """
    first, second, third = trainer(), trainer(), trainer()
    next(first.epochs())
    state = saved(first.state_dict())
    state["noise"] = state["noise"][:length]
    for run in (second, third):
        run.load_state_dict(state)
        list(run.epochs())

    assert second.moved_from == moved_from
    assert second.epoch == second.config.epochs
    assert torch.equal(second.margins(), third.margins())


def test_after_the_last_epoch_the_state_is_the_weights(trainer):
    first, second = trainer(), trainer()
    list(first.epochs())
    second.load_state_dict(saved(first.state_dict()))

    assert "optimizer" not in first.state_dict()
    assert list(second.epochs()) == []
    assert torch.equal(second.margins(), first.margins())


def test_another_loop_continues_after_a_break(trainer):
    expected = [untimed(metrics) for metrics in trainer().epochs()]
    run = trainer()
    first = untimed(next(run.epochs()))

    assert [first, *(untimed(metrics) for metrics in run.epochs())] == expected
    assert list(run.epochs()) == []


def test_trainers_are_independent_after_loading(trainer):
    """
    One continues from a checkpoint of the other in memory. Then both have the metrics of a single
    run.
    """
    expected = [untimed(metrics) for metrics in trainer().epochs()][1:]
    first, second = trainer(), trainer()
    next(first.epochs())
    second.load_state_dict(first.state_dict())

    assert [untimed(metrics) for metrics in first.epochs()] == expected
    assert [untimed(metrics) for metrics in second.epochs()] == expected


@pytest.mark.parametrize(
    "other",
    [replace(CONFIG, epochs=5), replace(CONFIG, seed=4), replace(CONFIG, precision="bf16")],
    ids=["epochs", "seed", "precision"],
)
def test_a_checkpoint_of_other_settings_is_refused(trainer, other):
    run = trainer()
    before = weights(run)
    state = trainer(other).state_dict()
    with pytest.raises(CheckpointError, match="the state is of settings") as caught:
        run.load_state_dict(state)

    message = str(caught.value)
    for config in (CONFIG, other):
        assert f"{config.digest()} with seed {config.seed}" in message
    assert same(weights(run), before)
    assert run.epoch == 0


# --- the certified pass ---


def exact_scores(run):
    """
    The scores of the test set in float64, rescaled in float64 from the raw weights.
    """
    with torch.no_grad():
        return deepcopy(run.model).double()(run.test.pixels.double() / 255)


def test_the_last_epochs_metrics_are_in_float64(learned):
    run, (*_, last) = learned
    scores, labels = exact_scores(run), run.test.labels
    with torch.no_grad():
        single = run.model(scale_pixels(run.test.pixels)).double()

    expected = loss_by_hand(scores, labels.numpy(), LEARNING.loss).mean()
    assert last.test_loss == pytest.approx(expected, rel=1e-12)
    assert loss_by_hand(single, labels.numpy(), LEARNING.loss).mean() != pytest.approx(
        expected, rel=1e-12
    )
    assert last.accuracy == correct(scores, labels).double().mean()
    for name, radius in RADII.items():
        assert getattr(last, name) == certified(scores, labels, radius).double().mean()


def test_margins_after_the_last_epoch_never_exceed_those_in_float64(learned):
    run, _ = learned
    exact, kept = margins(exact_scores(run), run.test.labels), run.margins().double()

    assert (kept <= exact + 1e-12).all()
    torch.testing.assert_close(kept, exact, rtol=2**-23, atol=1e-7)
    assert (exact.float().double() > exact).any()  # to the nearest, some would


def test_the_arithmetic_that_certifies_changes_the_result_and_not_the_training(trainer):
    double, single = trainer(), trainer(replace(CONFIG, certify="float32"))
    *earlier, last = double.epochs()
    *same_earlier, other = single.epochs()

    assert [untimed(one) for one in earlier] == [untimed(one) for one in same_earlier]
    assert same(weights(double), weights(single))
    assert other.test_loss == pytest.approx(last.test_loss, rel=1e-5)
    assert other.test_loss != last.test_loss
    assert not torch.equal(double.margins(), single.margins())
    with torch.no_grad():
        scores = single.model(scale_pixels(single.test.pixels))
    assert torch.equal(single.margins(), margins(scores, single.test.labels))


def test_certified_batches_are_smaller_and_change_nothing(trainer, monkeypatch):
    run = trainer(ONE_EPOCH)
    list(run.epochs())
    whole = run.margins()
    run._margins = None
    monkeypatch.setattr(train, "CERTIFY_BATCH", 30)

    torch.testing.assert_close(run.margins(), whole, rtol=1e-6, atol=0)


def test_a_certified_pass_leaves_the_network_in_float32(learned):
    run, _ = learned

    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    assert run.certificate().violations == ()
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())


def test_the_certificate_is_of_the_weights_that_were_certified(trainer):
    """
    In float64 the bounds are at most 1, in float32 rounding shows.
    """
    double, single = trainer(), trainer(replace(CONFIG, certify="float32"))
    list(double.epochs())
    single.load_state_dict({**saved(double.state_dict()), "digest": single.config.digest()})
    exact, rounded = double.certificate(), single.certificate()

    assert max(layer.upper for layer in exact.layers) < 1
    assert exact.violations == rounded.violations == ()
    assert exact != rounded
    assert (
        max(abs(a.upper - b.upper) for a, b in zip(exact.layers, rounded.layers, strict=True))
        < 1e-6
    )


# --- divergence ---


def test_a_diverged_error_has_run_epoch_and_step(trainer):
    """
    Scores are finite in step 0, and its update overflows float32.
    """
    config = replace(CONFIG, optimizer=OptimizerConfig(learning_rate=1e39))
    with pytest.raises(DivergedError) as caught:
        list(trainer(config, run="12-abc").epochs())

    error = caught.value
    assert (error.run, error.epoch, error.step) == ("12-abc", 0, 1)
    assert str(error) == "run 12-abc diverged after 0 epochs: no finite loss in step 1"


def test_a_diverged_error_has_the_number_of_a_later_epoch(trainer):
    run = trainer()
    epochs = run.epochs()
    next(epochs)
    run.model[-2].bias.data[0] = math.nan

    with pytest.raises(DivergedError) as caught:
        next(epochs)
    assert (caught.value.epoch, caught.value.step) == (1, 0)
    assert "diverged after 1 epoch: no finite loss in step 0" in str(caught.value)


def test_scores_that_are_not_finite_stop_the_evaluation(trainer):
    """
    An all-NaN row would "predict" class 0.
    """
    run = trainer(run="7")
    run.model[-2].bias.data[9] = math.inf

    with pytest.raises(DivergedError) as caught:
        run.margins()
    assert str(caught.value) == "run 7 diverged after 0 epochs: no finite loss in the evaluation"


def test_an_update_that_overflows_in_the_last_step_is_detected(trainer):
    config = replace(ONE_EPOCH, batch_size=100, optimizer=OptimizerConfig(learning_rate=1e39))
    with pytest.raises(DivergedError, match="in the evaluation"):
        list(trainer(config).epochs())


def test_a_diverged_error_survives_pickling():
    """
    Ray carries it from the worker to the driver.
    """
    error = pickle.loads(pickle.dumps(DivergedError("5", 3, 9)))
    assert (error.run, error.epoch, error.step) == ("5", 3, 9)
    assert str(error) == str(DivergedError("5", 3, 9))


# --- precision and memory ---


def test_bf16_trains_and_evaluates_in_float32(trainer):
    run = trainer(replace(ONE_EPOCH, precision="bf16"))
    (metrics,) = run.epochs()
    (full,) = trainer(ONE_EPOCH).epochs()

    assert metrics.train_loss == pytest.approx(full.train_loss, rel=0.05)
    assert metrics.train_loss != full.train_loss
    assert run.margins().dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
    with torch.no_grad():
        expected = margins(run.model(scale_pixels(run.test.pixels)), run.test.labels)
    torch.testing.assert_close(run.margins(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "in_training"), [("float32", False), ("tf32", True), ("bf16", True)]
)
def test_tf32_is_allowed_in_training_only(trainer, monkeypatch, precision, in_training):
    """
    This includes bf16, because the rescaling has float32 products and the matrix units are idle.
    """
    allowed = []
    for module in (train, optimizer):
        monkeypatch.setattr(module, "allow_tf32", allowed.append)

    list(trainer(replace(ONE_EPOCH, precision=precision)).epochs())

    assert allowed == [in_training, False]


def test_tf32_switches_both_libraries():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for allowed in (True, False):
            train.allow_tf32(allowed)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            assert torch.backends.cudnn.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_pixels_are_scaled_to_the_unit_interval_channels_last():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    images = scale_pixels(pixels)

    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(scale_pixels(pixels, torch.float64), pixels.double() / 255)
    torch.testing.assert_close(images[1, :, 2, 3], torch.tensor([0.0, 0.2, 1.0]))


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(kind="conv", width=1 / 8),
        ModelConfig(kind="std", width=1 / 8),
        ModelConfig(kind="fc", width=1 / 64),
    ],
    ids=lambda model: model.kind,
)
def test_every_architecture_trains(trainer, model):
    run = trainer(replace(ONE_EPOCH, model=model))
    before = weights(run)
    (metrics,) = run.epochs()

    assert math.isfinite(metrics.train_loss)
    assert all(not torch.equal(before[name], value) for name, value in weights(run).items())


def test_widths_that_do_not_fit_are_refused_before_training(trainer):
    with pytest.raises(ValueError, match="every width must be even"):
        trainer(replace(CONFIG, model=ModelConfig(kind="conv", size=3)))


def test_given_images_replace_those_of_the_data_root(tmp_path):
    """
    No source is tried, so the root may be empty.
    """
    pixels = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8)
    parts = [
        Images(pixels[part], torch.zeros(len(pixels[part]), dtype=torch.int64))
        for part in (slice(40), slice(40, 60))
    ]
    config = replace(CONFIG, data=DataConfig(name="cifar10"), epochs=1, batch_size=20)
    trainer = Trainer(config, data_root=tmp_path, device=torch.device("cpu"), images=tuple(parts))
    (metrics,) = trainer.epochs()

    assert [len(trainer.train), len(trainer.test)] == [40, 20]
    assert metrics.accuracy is not None
    assert not list(tmp_path.iterdir())


def test_the_result_has_the_singular_values_at_the_start_and_after_training(trainer):
    run = trainer(ONE_EPOCH)
    for _ in run.epochs():
        pass
    found = evaluate_result(run).certificate["singular_values"]
    start, trained = (
        [Spectrum.from_dict(one) for one in found[when]] for when in ("start", "trained")
    )

    assert len(start) == len(trained) == 28
    assert share_nearly_orthogonal(start) > 0.95
    assert Spectrum.from_dict(found["jacobian"]).size == 10 * min(32, len(run.test))
