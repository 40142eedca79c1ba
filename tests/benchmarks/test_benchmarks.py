import json
import math
import os
import platform
import re
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aol.config import ModelConfig
from aol.layers.modules import AOLConv2d, AOLLinear, MaxMin
from aol.models.architectures import architecture, build_model
from aol.models.flops import layers_of
from aol.training import optimizer
from aol.training.loss import offset_cross_entropy
from benchmarks import checks as checking
from benchmarks import cpu, gpu, implementations, machine, memory, plain, reference, variants
from benchmarks import store as store_bench
from benchmarks.checks import check
from benchmarks.device import free
from benchmarks.reference import CHECK_BATCH, check_config, make_reference, run_steps, sketch
from benchmarks.roofline import Roofline
from benchmarks.variants import EAGER_VARIANTS, Network, Variant, noisy_model, recorded_variants
from tests.support.golden_recipe import (
    drawn_batch,
    drawn_parameters,
    golden,
    images_from_tf,
    load_parameters,
    text,
    weight_from_tf,
    weight_to_tf,
    worst,
)

RESCALE = golden("rescale")
CASES = sorted(name.removesuffix("_K") for name in RESCALE.files if name.endswith("_K"))


@pytest.mark.parametrize("name", CASES)
def test_the_plain_rescaling_equals_the_authors(name):
    weight = weight_from_tf(RESCALE[f"{name}_K"]).requires_grad_()
    upstream = weight_from_tf(RESCALE[f"{name}_G"])
    rescaled = (plain.rescale_conv if weight.ndim == 4 else plain.rescale_dense)(weight)
    (gradient,) = torch.autograd.grad(rescaled, weight, upstream)

    assert worst(weight_to_tf(rescaled), RESCALE[f"{name}_f64_kernel"]) <= 1e-10
    assert worst(weight_to_tf(gradient), RESCALE[f"{name}_f64_grad"]) <= 1e-10


@pytest.mark.slow
def test_the_plain_network_equals_the_authors():
    """
    AOL-Conv in float64: scores, and every parameter's gradient by its norm.
    """
    tag, file = "conv16_10", golden("models_float64")
    with torch.device("meta"):
        model = architecture(ModelConfig(kind="conv"), 10)
    shapes = text(file[f"{tag}_kernel_shapes"])
    load_parameters(model, drawn_parameters(shapes, seed=2026), torch.float64)
    network = plain.plain_copy(model)
    images, labels = drawn_batch(seed=7, count=4, classes=10)
    scores = network(images_from_tf(images))
    offset_cross_entropy(
        scores, torch.from_numpy(labels), offset=math.sqrt(2), temperature=1 / 4
    ).mean().backward()

    assert np.abs(scores.detach().numpy() - file[f"{tag}_scores"]).max() <= 1e-12
    norms = [
        (parameter.grad + (1e-3 * parameter.detach() if parameter.ndim > 1 else 0)).norm().item()
        for parameter in network.parameters()
    ]
    assert norms == pytest.approx(file[f"{tag}_grad_norms"], rel=1e-10)


@pytest.mark.parametrize("kind", ["patchwise", "fc", "std", "conv"])
def test_the_plain_copy_is_the_same_function(kind):
    config = ModelConfig(kind=kind, width=1 / 8 if kind == "conv" else 1 / 16)
    model = build_model(config, 10, torch.Generator().manual_seed(0))
    network = plain.plain_copy(model)
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    torch.testing.assert_close(network(images), model(images), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(layer, MaxMin) for layer in network)
    with torch.no_grad():
        next(network.parameters()).zero_()
    assert next(model.parameters()).any()


def test_the_cpu_benchmark_prints_and_writes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(cpu, "ROWS", [replace(row, rounds=2) for row in cpu.ROWS])
    cpu.main(["conv16", "dense64", "--keep", "here"])

    table = (tmp_path / "here.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert f"torch {torch.__version__}" in table
    assert [line.split(" | ")[0] for line in table.splitlines()[-2:]] == [
        "| rescale, conv 3×3 of 16",
        "| rescale, dense 64",
    ]


@pytest.mark.slow
def test_the_store_benchmark_has_a_column_per_store_with_targets(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    monkeypatch.setattr(store_bench, "REPEATS", 1)
    monkeypatch.setattr(store_bench, "FOLDERS", 2)
    store_bench.main(["--runs", "70", "72", "--epochs", "2", "--keep", "here"])

    page = (tmp_path / "here.md").read_text(encoding="utf-8")
    header, _, *lines = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")
    ]
    assert page in capsys.readouterr().out
    assert header == ["measurement", "70 runs, 1,540 metrics", "72 runs, 1,584 metrics", "target"]
    assert {line[0]: line[3] for line in lines if line[3] != "–"} == {
        "metrics written by `ingest`": "≥ 50,000",
        "`report`: the paper's tables with their verdicts": "≤ 1,000 ms",
        "`status`": "≤ 300 ms",
        "metrics read from folders and written by `ingest`": "≥ 50,000",
    }
    assert len(lines) == 12


@pytest.mark.slow
def test_the_store_benchmark_has_whole_tables_of_sound_runs(store):
    """
    Every cell has five seeds, and no invariant is violated.
    """
    experiment = store_bench.paper_experiment(2)
    store_bench.fill(store, 72, experiment, store_bench.CLOCKS["cpu"])
    report = store_bench.make_report(experiment, store)
    others = [run for run in store.runs() if run.profile == "other"]

    assert report.violations == ()
    assert {cell.seeds for cell in report.cells} == {store_bench.SEEDS}
    assert len(others) == 2
    assert len(store.query("SELECT * FROM v_final WHERE metric = 'cra_1'")[1]) == 72


@pytest.mark.parametrize("rate", [1e-3, 1.0])
def test_implementations_take_the_same_steps(rate):
    """
    Two steps give the same weights, the second one with momentum. At the larger rate the weight
    decay is a thousandth of the weights, ten times the tolerance.
    """
    config = implementations.train_config(ModelConfig(kind="std", width=1 / 16), 4)
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=rate))
    start = implementations.initial_model(config.model)
    port, ours = (
        implementations.plain_training(config, start),
        implementations.our_training(config, start),
    )
    before = list(start.parameters())
    for _ in range(2):
        port()
        ours()
        models = (before, port.model.parameters(), ours.model.parameters())
        for old, left, right in zip(*models, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)
            assert not torch.equal(old, right)
        before = [parameter.detach().clone() for parameter in ours.model.parameters()]


def test_evaluations_have_four_batches_with_equal_scores(monkeypatch):
    """
    Our layers are rescaled once for all batches, the port's once for each.
    """
    counts = {"ours": 0, "plain": 0}

    def counted(name, function):
        def count(weight):
            counts[name] += 1
            return function(weight)

        return count

    for owner, name in ((AOLConv2d, "rescale_conv"), (AOLLinear, "rescale_dense")):
        monkeypatch.setattr(owner, "_rescale", staticmethod(counted("ours", owner._rescale)))
        monkeypatch.setattr(plain, name, counted("plain", getattr(plain, name)))
    runs = implementations.evaluation(ModelConfig(kind="std", width=1 / 16), 3)
    scores = {name: torch.stack(run()) for name, run in runs.items()}

    assert scores["ours"].shape == (4, 3, 10)
    assert not scores["ours"].requires_grad
    torch.testing.assert_close(scores["plain"], scores["ours"], rtol=1e-4, atol=1e-5)
    assert counts["plain"] == 4 * counts["ours"] > 0


def test_both_augmentations_have_the_same_number_of_images():
    images = [run() for run in implementations.augmentation().values()]

    assert [image.shape for image in images] == [(250, 3, 32, 32)] * 2


def row(rounds=3):
    return cpu.Row("name", "title", dict, 2.5, rounds)


def test_a_row_has_median_milliseconds_and_the_median_ratio_of_the_rounds():
    seconds = {"plain": [0.006, 0.008, 0.1], "ours": [0.003, 0.002, 0.1]}

    expected = ["title", "8.00", "3.00", "–", "2.00×", "≥ 2.5×"]
    assert cpu.time_cells(row(), seconds) == expected
    expected[3] = "7.0"
    assert cpu.time_cells(row(), seconds | {"orthogonium": [0.007] * 3}) == expected


def test_the_share_of_the_augmentation_is_relative_to_the_step():
    seconds = {
        "augment": {"plain": [9.0], "ours": [0.001, 0.002, 0.003]},
        "step-small": {"plain": [9.0], "ours": [0.1, 0.2, 9.0]},
    }

    assert cpu.share_cells(seconds)[2] == "1.0 %"


def test_a_row_is_measured_round_by_round_without_the_first():
    order, ticks = [], iter(range(100))
    runs = {name: lambda name=name: order.append(name) for name in ("plain", "ours")}
    found = cpu.measure(replace(row(), make=lambda: runs), lambda: next(ticks))

    assert order == ["plain", "ours"] * 4
    assert found == {"plain": [1] * 3, "ours": [1] * 3}


def test_the_memory_ratio_is_ours_over_the_ports(monkeypatch):
    monkeypatch.setattr(memory, "peak_mb", lambda name, *_: {"plain": 1000.0, "ours": 700.0}[name])

    assert cpu.memory_cells("std", "std", 50)[1:5] == ["1000 MB", "700 MB", "–", "0.70×"]


def test_a_processor_is_described_by_its_family_model_and_widest_vectors(tmp_path):
    """
    Only the first processor counts; without Linux's file, Python's name is used.
    """
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
        "flags\t\t: avx sse2 avx512f avx2\n\nprocessor\t: 1\nmodel\t\t: 99\n",
        encoding="utf-8",
    )
    cores = f"{os.cpu_count()} cores"

    assert machine.describe_machine(file) == f"AMD EPYC (family 25, model 17, AVX-512), {cores}"
    file.write_text("model name : ARM\nFeatures : asimd\n", encoding="utf-8")
    assert machine.describe_machine(file) == f"ARM, {cores}"
    assert (
        machine.describe_machine(tmp_path / "none")
        == f"{platform.processor() or platform.machine()}, {cores}"
    )


PEER = """
    import torch

    NOTE = "\\d"  # warns when it is compiled


    class MultiStepAOLReparametrizer(torch.nn.Module):
        def __init__(self, channels, groups, niter):
            super().__init__()

        def forward(self, kernel):
            return kernel / 2
"""


@pytest.fixture
def without_orthogonium(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "orthogonium"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "orthogonium", None)


@pytest.fixture
def with_orthogonium(without_orthogonium, tmp_path, monkeypatch):
    """
    A fake orthogonium whose source has the same warning.
    """
    folder = tmp_path / "orthogonium" / "layers" / "conv" / "AOL"
    folder.mkdir(parents=True)
    (folder / "aol.py").write_text(textwrap.dedent(PEER), encoding="utf-8")
    monkeypatch.delitem(sys.modules, "orthogonium")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "orthogonium"]:
        del sys.modules[name]


def test_an_installed_orthogonium_is_compared_despite_its_warnings(with_orthogonium):
    runs = implementations.rescale((4, 4, 3, 3))
    runs["orthogonium"]()

    assert list(runs) == ["plain", "ours", "orthogonium"]


def test_without_orthogonium_two_implementations_are_compared(without_orthogonium):
    assert list(implementations.rescale((4, 4, 3, 3))) == ["plain", "ours"]


SMALL_BENCH = ["--device", "cpu", "--batch", "10", "--rounds", "2", "--matrix", "64"]
SMALL_BENCH += ["--copied-bytes", "100000", "--width", "0.125"]
NARROW_CONV = ModelConfig(kind="conv", width=1 / 8)


@pytest.mark.slow
def test_the_gpu_benchmark_checks_and_times_every_variant(tmp_path, capsys):
    """
    On the CPU there are no graphs.
    """
    code = gpu.main(["AOL-Small", "AOL-STD", *SMALL_BENCH, "--keep", str(tmp_path / "here.md")])

    page = (tmp_path / "here.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| AOL-")]
    rates = json.loads(re.search(r"```json\n(.*?)```", page, re.DOTALL)[1])
    assert code == 0
    assert page in capsys.readouterr().out
    assert [row[1] for row in rows] == ["plain float32", "float32", "tf32", "bf16"] * 2
    errors = {row[1]: float(row[2]) for row in rows[:4]}
    assert 0 < errors["float32"] < 1e-2 < errors["bf16"] * 10
    for row in rows[:4]:  # from the same measurement
        assert 10 * 50_000 / float(row[4].replace(",", "")) == pytest.approx(
            10 * rates["AOL-Small"][row[1]], rel=0.01
        )


def test_the_gpu_benchmark_uses_the_precision_of_the_variant(monkeypatch):
    allowed = []
    monkeypatch.setattr(optimizer, "allow_tf32", allowed.append)
    model = noisy_model(NARROW_CONV)
    trajectory = make_reference(check_config(NARROW_CONV), model).trajectory
    network = Network("AOL-Conv", NARROW_CONV, model, implementations.CPU)
    for variant in EAGER_VARIANTS:
        check(network, variant, trajectory)

    assert allowed == [False, False, True, True]  # plain float32, float32, tf32, bf16


def made_wrong(name, wrong):
    """
    Return our training with changed settings.
    """
    right = implementations.our_training

    def training(config, *arguments, **keywords):
        part = getattr(config, name)
        return right(replace(config, **{name: replace(part, **wrong)}), *arguments, **keywords)

    return training


WRONG = [
    ("optimizer", {"momentum": 0.8}),
    ("optimizer", {"nesterov": False}),
    ("optimizer", {"l2": 1e-3}),
    ("optimizer", {"learning_rate": 1.1e-3}),
    ("loss", {"temperature": 0.26}),
    ("loss", {"offset": 1.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), WRONG[:1], ids=str)
def test_the_gpu_benchmark_returns_1_if_a_variant_is_wrong(monkeypatch, capsys, name, wrong):
    monkeypatch.setattr(variants, "our_training", made_wrong(name, wrong))
    code = gpu.main(["AOL-Conv", *SMALL_BENCH])

    lines = capsys.readouterr().out.splitlines()
    marked = [line for line in lines if "too large" in line or "losses differ" in line]
    assert code == 1
    assert not any("plain" in line for line in marked)
    assert any("| float32 |" in line for line in marked)


@pytest.fixture
def with_recorded_variants(monkeypatch):
    """
    The recorded variants on the CPU, where recording fails.
    """
    cuda = torch.device("cuda")
    monkeypatch.setattr(gpu, "recorded_variants", lambda device: recorded_variants(cuda))


def test_an_error_while_memory_is_freed_is_ignored(monkeypatch):
    """
    As after a failed recording.
    """
    asked = []

    def refuse():
        asked.append(True)
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    monkeypatch.setattr(torch.cuda, "empty_cache", refuse)
    free(torch.device("cuda"))
    free(implementations.CPU)

    assert asked == [True]


def lines_in(page):
    """
    The cells of AOL-Conv's rows by variant.
    """
    lines = [line for line in page.splitlines() if line.startswith("| AOL-Conv")]
    rows = [line.strip("| ").split(" | ") for line in lines]
    return {variant: [cell.strip() for cell in cells] for _, variant, *cells in rows}


@pytest.mark.slow
def test_a_variant_that_fails_its_check_does_not_affect_the_others(with_recorded_variants, capsys):
    code = gpu.main(["AOL-Conv", "AOL-STD", *SMALL_BENCH])

    out, err = capsys.readouterr()
    page = out[out.index("# The training step") :]
    found = lines_in(page)
    assert code == 1
    assert "AOL-Conv, check, float32, graph:\nTraceback" in err
    assert "AOL-STD" not in err  # a failed recording may damage the allocator
    assert [line.split(" | ")[1] for line in page.splitlines() if "| AOL-STD" in line] == [
        "plain float32",
        *variants.PRECISIONS,
    ]
    for precision in variants.PRECISIONS:
        assert found[f"{precision}, graph"] == ["failed", "failed", "–", "–", "–"]
        assert float(found[precision][1]) > 0
    rates = json.loads(re.search(r"```json\n(.*?)```", out, re.DOTALL)[1])
    assert list(rates["AOL-Conv"]) == ["plain float32", *variants.PRECISIONS]


@pytest.mark.slow
def test_eager_leaves_out_the_recorded_variants(with_recorded_variants, capsys):
    assert gpu.main(["AOL-Conv", *SMALL_BENCH, "--eager"]) == 0
    assert list(lines_in(capsys.readouterr().out)) == ["plain float32", *variants.PRECISIONS]


@pytest.mark.slow
def test_a_variant_that_fails_at_full_size_keeps_its_error(monkeypatch, capsys):
    """
    Here it is the port, without which there is no speedup.
    """
    right = implementations.plain_training

    def training(config, *arguments, **keywords):
        if config.batch_size == 10:
            raise torch.OutOfMemoryError("no memory")
        return right(config, *arguments, **keywords)

    monkeypatch.setattr(variants, "plain_training", training)
    code = gpu.main(["AOL-Conv", *SMALL_BENCH])

    out, err = capsys.readouterr()
    found = lines_in(out)
    assert code == 1
    assert "AOL-Conv, warm-up, plain float32:\nTraceback" in err
    assert "OutOfMemoryError: no memory" in err
    assert float(found["plain float32"][0]) < 1e-2
    assert found["plain float32"][1:] == ["failed", "–", "–", "–"]
    assert found["tf32"][3] == "–"
    assert float(found["tf32"][1]) > 0


@pytest.mark.slow
def test_a_variant_that_fails_in_a_round_does_not_affect_the_others(monkeypatch, capsys):
    """
    Here it is the second round of bf16.
    """
    seconds_of, calls = gpu.roofline.seconds_of, []

    def failing(run, device, count=10):
        if run.in_bf16:
            calls.append(count)
            if len(calls) == 3:  # the first call counts the steps of a round
                raise RuntimeError("no round")
        return seconds_of(run, device, 1)

    right = Variant.training

    def training(variant, *arguments):
        made = right(variant, *arguments)
        object.__setattr__(made, "in_bf16", variant.precision == "bf16")
        return made

    monkeypatch.setattr(Variant, "training", training)
    monkeypatch.setattr(
        gpu.roofline, "measure", lambda *_: Roofline(dict.fromkeys(variants.PRECISIONS, 1e9), 1e9)
    )
    monkeypatch.setattr(gpu.roofline, "seconds_of", failing)
    code = gpu.main(["AOL-Conv", *SMALL_BENCH])

    out, err = capsys.readouterr()
    found = lines_in(out)
    assert code == 1
    assert "AOL-Conv, round, bf16:\nTraceback" in err
    assert found["bf16"][1:] == ["failed", "–", "–", "–"]
    assert float(found["tf32"][1]) > 0


# The arguments that are factors of a product, by operation.
PRODUCTS = {
    "mm": (0, 1),
    "bmm": (0, 1),
    "addmm": (1, 2),
    "addmm_": (1, 2),
    "_linear_pointwise": (0, 1),
    "convolution": (0, 1),
    "convolution_backward": (0, 1, 2),
}


class InTF32(TorchDispatchMode):
    """
    Rounds the factors of every product to TF32's ten bits, as a GPU does.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        factors = PRODUCTS.get(function.overloadpacket.__name__, ())
        args = [rounded(arg) if at in factors else arg for at, arg in enumerate(args)]
        return function(*args, **(kwargs or {}))


def rounded(tensor):
    if tensor.dtype != torch.float32:
        return tensor
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def test_tf32_and_bf16_are_well_within_their_tolerances(reference_file):
    """
    Emulated on a narrow AOL-Conv, including the rescaling.
    """
    model, exact = (
        noisy_model(NARROW_CONV),
        reference.load_references(reference_file)["AOL-Conv"].trajectory,
    )
    network = Network("AOL-Conv", NARROW_CONV, model, implementations.CPU)

    def training(precision):
        return Variant(precision).training(network, CHECK_BATCH)

    errors = {"float32": run_steps(training("float32"), model).distance(exact)}
    for precision in ("tf32", "bf16"):
        with InTF32():
            errors[precision] = run_steps(training(precision), model).distance(exact)

    assert errors["float32"] < errors["tf32"] < errors["bf16"]
    for precision, error in errors.items():
        assert error < checking.TOLERANCE[precision] / 2


# References


SKETCHED = torch.Generator().manual_seed(3)
FIRST_SIGNS = [-1, 1, -1, -1, 1, -1, -1, 1, 1, 1, 1, -1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(300, 400, generator=SKETCHED),
        torch.ones(600, 509),
        torch.zeros(900, 1024).index_fill_(1, torch.tensor([7]), 1.0),  # one column
        torch.zeros(900, 1024).index_fill_(0, torch.tensor([7]), 1.0),  # one row
        torch.zeros(4, 5, 3, 3).index_fill_(0, torch.tensor([1]), 2.0),
    ],
    ids=["dense", "constant", "a column", "a row", "a small kernel"],
)
def test_a_sketch_has_its_tensors_norm(tensor):
    found = sketch(tensor)

    assert found.shape == (reference.SKETCH_SIZE,)
    assert float(found.norm() / tensor.double().norm()) == pytest.approx(1, abs=0.15)


def test_a_sketch_is_linear_and_keeps_the_size_of_a_single_entry():
    tensor = torch.randn(64, 64, generator=SKETCHED).double()
    other = tensor.clone()
    other[3, 5] += 0.5

    assert float((sketch(other) - sketch(tensor)).norm()) == pytest.approx(0.5, rel=1e-6)
    torch.testing.assert_close(sketch(3 * tensor), 3 * sketch(tensor))


def test_signs_are_balanced_uncorrelated_and_reproducible():
    signs = reference._signs(1_000_000, implementations.CPU)

    assert signs[:12].tolist() == FIRST_SIGNS
    assert abs(signs.double().mean()) < 3e-3
    assert abs((signs[1:] * signs[:-1]).double().mean()) < 3e-3
    assert abs((signs[509:] * signs[:-509]).double().mean()) < 3e-3


@pytest.fixture(scope="module")
def reference_file(tmp_path_factory):
    """
    A file with the reference of a narrow AOL-Conv.
    """
    file = tmp_path_factory.mktemp("reference") / "folder" / "reference.pt"
    assert gpu.main(["AOL-Conv", "--width", "0.125", "--make-reference", str(file)]) == 0
    return file


def test_the_projects_reference_fits_the_present_code():
    """
    `python -m benchmarks.gpu --make-reference benchmarks/reference.pt` creates it.
    """
    kept = reference.load_references(gpu.REFERENCE)
    conv = variants.MODELS["AOL-Conv"]

    assert set(kept) == set(variants.MODELS)
    assert kept["AOL-Conv"].mismatch(check_config(conv), variants.noisy_model(conv)) is None
    for name, model in variants.MODELS.items():
        assert kept[name].settings == reference._settings(check_config(model)), name


@pytest.mark.slow
def test_a_reference_replaces_float64_steps(reference_file, monkeypatch, capsys):
    """
    The result is the same, without a float64 step.
    """
    monkeypatch.setattr(checking, "make_reference", None)
    code = gpu.main(["AOL-Conv", *SMALL_BENCH, "--reference", str(reference_file)])

    assert code == 0
    assert "computing it again" not in capsys.readouterr().out
    assert reference_file.stat().st_size < 500_000


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=str)
def test_a_reference_finds_a_wrong_variant(reference_file, monkeypatch, name, wrong):
    monkeypatch.setattr(variants, "our_training", made_wrong(name, wrong))
    monkeypatch.setattr(checking, "make_reference", None)
    trajectory = reference.load_references(reference_file)["AOL-Conv"].trajectory
    network = Network("AOL-Conv", NARROW_CONV, noisy_model(NARROW_CONV), implementations.CPU)
    port, ours = (
        check(network, way, trajectory) for way in EAGER_VARIANTS if way.precision == "float32"
    )

    assert port.failure is None
    assert ours.failure


def test_the_distance_of_sketches_is_that_of_the_tensors(reference_file):
    """
    Up to the deviation of the sketches.
    """
    model = noisy_model(NARROW_CONV)
    settings = check_config(NARROW_CONV)
    right = implementations.plain_training(settings, model, dtype=torch.float64)
    wrong = implementations.our_training(
        replace(settings, optimizer=replace(settings.optimizer, momentum=0.8)), model
    )
    trajectory = reference.run_steps(wrong, model)
    reference.run_steps(right, model)
    runs = (run.model.parameters() for run in (right, wrong))
    pairs = list(zip(*runs, model.parameters(), strict=True))
    apart = sum((a - b).detach().double().square().sum() for a, b, _ in pairs)
    moved = sum((a - start).detach().double().square().sum() for a, _, start in pairs)

    expected = reference.load_references(reference_file)["AOL-Conv"].trajectory
    assert trajectory.distance(expected) == pytest.approx(float((apart / moved).sqrt()), rel=0.1)


def test_missing_references_are_added_to_a_file(reference_file, tmp_path, capsys):
    file = tmp_path / "reference.pt"
    file.write_bytes(reference_file.read_bytes())
    arguments = ["AOL-Conv", "AOL-STD", "--width", "0.125", "--make-reference", str(file)]
    code = gpu.main(arguments)

    assert code == 0
    assert capsys.readouterr().out.startswith("AOL-Conv: exists already\nAOL-STD: computed in ")
    assert list(reference.load_references(file)) == ["AOL-Conv", "AOL-STD"]


def test_a_mismatching_reference_is_reported_and_replaced(reference_file, monkeypatch, capsys):
    """
    It may have other settings, images or first weights, except for rounding.
    """
    found = reference.load_references(reference_file)["AOL-Conv"]
    settings, model = check_config(NARROW_CONV), noisy_model(NARROW_CONV)
    nearly, far = noisy_model(NARROW_CONV), implementations.initial_model(NARROW_CONV)
    with torch.no_grad():
        for weight in nearly.parameters():
            weight.mul_(1 + 1e-7)
    misfits = [
        found.mismatch(settings, nearly),
        found.mismatch(settings, far),
        replace(found, images="others").mismatch(settings, model),
        found.mismatch(check_config(ModelConfig(kind="std", width=1 / 8)), model),
    ]
    monkeypatch.setattr(checking, "make_reference", lambda config, model: found)
    network = Network("AOL-Conv", NARROW_CONV, far, implementations.CPU)
    trajectory = checking.expected_trajectory(network, {"AOL-Conv": found})

    assert misfits[0] is None
    for mismatch, words in zip(
        misfits[1:], ["other first weights", "other images", "other settings"], strict=True
    ):
        assert words in mismatch
    assert trajectory is found.trajectory
    assert "AOL-Conv: the reference has other first weights" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "text", "other", "gone"])
def test_an_invalid_reference_file_is_a_one_line_error(reference_file, tmp_path, capsys, damage):
    file = tmp_path / "reference.pt"
    if damage == "cut":
        file.write_bytes(reference_file.read_bytes()[:-2000])
    elif damage == "text":
        file.write_text("no reference")
    elif damage == "other":
        torch.save({"AOL-Conv": {"weights": torch.zeros(3)}}, file)
    code = gpu.main(["AOL-Conv", *SMALL_BENCH, "--reference", str(file)])

    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith(f"{file}: ")


def test_an_unknown_network_is_reported(capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu.main(["AOL-Tiny"])
    assert "unknown: AOL-Tiny; the networks are AOL-Small" in capsys.readouterr().err


def test_the_roofline_is_the_longer_of_products_and_memory():
    """
    AOL-Small: 0.545 GFLOP an image forward and 18.7 million parameters.
    """
    model = ModelConfig(kind="patchwise")
    slow_products = Roofline({"float32": 1e12, "tf32": 2e12, "bf16": 4e12}, 1e30)
    slow_memory = Roofline({"float32": 1e30, "tf32": 1e30, "bf16": 1e30}, 1e9)

    assert 3 * 250 * 0.545e9 < 1e12 * slow_products.step_seconds(model, 250, "float32") < 0.62e12
    rescaling = 1e-12 * sum(layer.rescale_flop for layer in layers_of(model))
    assert slow_products.step_seconds(model, 250, "bf16") == pytest.approx(
        (slow_products.step_seconds(model, 250, "float32") - rescaling) / 4 + rescaling / 2
    )  # the rescaling at TF32's rate
    weights, outputs = 8 * 4 * 18.72e6, 4 * 4 * 250 * (14 * 64 * 192 + 14 * 1024)
    for precision, share in (("float32", 1), ("tf32", 1), ("bf16", 1 / 2)):  # of outputs' bytes
        found = 1e9 * slow_memory.step_seconds(model, 250, precision)
        assert found == pytest.approx(weights + share * outputs, rel=1e-3)


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_separate_process():
    """
    AOL-Conv's weights, momentum and gradients alone are 180 MB; the test's own memory is not in it.
    """
    held = torch.ones(300_000_000, dtype=torch.uint8)

    assert 180 < memory.peak_mb("ours", "conv", 2) < 600
    assert held[0] == 1
