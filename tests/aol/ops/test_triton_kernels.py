"""
The kernels for GPUs, on the CPU in Triton's interpreter, and the check before their use.
"""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")  # torch for CUDA brings it along, other builds do not

from aol.config import ModelConfig
from aol.layers.modules import MaxMin, rescaled_together
from aol.models.architectures import build_model
from aol.ops import dispatch as fused
from aol.ops import maxmin, rescale
from aol.ops import triton_kernels as kernels
from aol.ops.rescale import rescale_convs, rescale_denses
from tests.support.shell import PROJECT

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
NAMES = ("maxmin", "maxmin_gradient", "signs_and_sums", "signed_sums")
TYPES = (torch.float32, torch.float64, torch.bfloat16)


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def both_ways(monkeypatch, run):
    """
    Return the result of `run` with torch's operations and with the kernels.
    """
    plain = run()
    for module in (maxmin, rescale):
        monkeypatch.setattr(module, "kernels_for", lambda tensor: kernels)
    return plain, run()


def with_gradient(function, x, upstream):
    x = x.clone().requires_grad_()
    result = function(x)
    return result.detach(), *torch.autograd.grad(result, x, upstream)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 6), (3, 700), (2, 4, 5, 3), (2, 48, 7, 9)], ids=str)
def test_maxmin_is_equal_to_the_last_bit_including_ties(monkeypatch, shape, dtype):
    """
    Every third channel's pair is a tie in the first image. Halves of bf16 are rounded elsewhere.
    """
    x, upstream = normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1)
    x[0, 1::6] = x[0, ::6]
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    plain, found = both_ways(monkeypatch, lambda: with_gradient(MaxMin(), x, upstream))

    for expected, tensor in zip(plain, found, strict=True):
        assert tensor.dtype == dtype
        assert tensor.stride() == expected.stride()
    assert torch.equal(found[0], plain[0])
    if dtype == torch.bfloat16:
        torch.testing.assert_close(found[1], plain[1])
        found, plain = ([tensor[1:] for tensor in pair] for pair in (found, plain))
    assert torch.equal(found[1], plain[1])


def test_the_second_derivative_of_maxmin_is_the_same(monkeypatch):
    x = normal(2, 6)
    x[0, 1] = x[0, 0]

    def run():
        return torch.autograd.functional.hessian(lambda x: MaxMin()(x).pow(3).sum(), x)

    plain, found = both_ways(monkeypatch, run)

    assert torch.equal(found, plain)
    assert found.norm() > 1


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_maxmin_propagates_nan(monkeypatch, dtype):
    """
    As in torch, so that a diverging run is detected.
    """
    x = torch.tensor([[1.0, torch.nan, torch.nan, 2.0, 3.0, 4.0]], dtype=dtype)

    for found in both_ways(monkeypatch, lambda: MaxMin()(x)):
        assert found.isnan().tolist() == [[True] * 4 + [False] * 2]
        assert found[0, 4:].tolist() == [4.0, 3.0]


@pytest.mark.parametrize("dtype", TYPES[:2], ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 2, 3, 3),
        (5, 2, 70, 70),
        pytest.param((1, 1, 1030, 1030), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_signs_and_sums_of_one_pass_equal_those_of_several(monkeypatch, shape, dtype):
    """
    Zeros have no sign. The widest tensors take more than one step.
    """
    half, pull = normal(*shape, dtype=dtype), normal(*shape[1:3], dtype=dtype, seed=1)
    half[half.abs() < 0.1] = 0
    half[0] += half[0].mT.clone()  # as V is at (0, 0)

    def run():
        found, total = rescale.signs_and_total(half.clone(), signed=True)
        return found, total, rescale.signed_sums(found, pull)

    plain, found = both_ways(monkeypatch, run)

    assert torch.equal(found[0], plain[0])
    assert found[0].dtype == torch.int8
    assert int((found[0] == 0).sum()) > 0
    torch.testing.assert_close(found[1], plain[1])
    assert torch.equal(found[2], plain[2])


@pytest.mark.parametrize("inputs", [72, 80])
def test_convolutions_are_rescaled_equally(monkeypatch, inputs):
    kernel, upstream = normal(2, 4, inputs, 3, 3), normal(2, 4, inputs, 3, 3, seed=1)
    plain, found = both_ways(monkeypatch, lambda: with_gradient(rescale_convs, kernel, upstream))

    for expected, tensor in zip(plain, found, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-13)


def test_matrices_are_rescaled_equally(monkeypatch):
    matrices, upstream = normal(2, 8, 300), normal(2, 8, 300, seed=1)
    plain, found = both_ways(monkeypatch, lambda: with_gradient(rescale_denses, matrices, upstream))

    for expected, tensor in zip(plain, found, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.slow
def test_a_network_has_the_same_scores_and_gradients(monkeypatch):
    """
    Rescaled together, as on a GPU, and wide enough to take every kernel.
    """
    config = ModelConfig(kind="patchwise", width=3 / 8)
    model = build_model(config, 10, torch.Generator().manual_seed(0)).double()
    for index, weight in enumerate(model.parameters()):
        weight.data += 0.01 * normal(*weight.shape, seed=index)  # away from ties and zeros
    images = normal(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    taken = []
    for name in NAMES:
        monkeypatch.setattr(kernels, name, recorded(getattr(kernels, name), taken))

    def run():
        model.zero_grad()
        with rescaled_together(model):
            scores = model(images)
        scores.square().sum().backward()
        return [scores.detach(), *(parameter.grad for parameter in model.parameters())]

    plain, found = both_ways(monkeypatch, run)

    assert set(taken) == set(NAMES)
    for expected, tensor in zip(plain, found, strict=True):
        assert (tensor - expected).abs().max() <= 1e-11 * expected.abs().max()


def recorded(kernel, taken):
    def called(*tensors):
        taken.append(kernel.__name__)
        return kernel(*tensors)

    return called


def test_without_a_gradient_no_signs_are_computed(monkeypatch):
    monkeypatch.setattr(rescale, "kernels_for", lambda tensor: kernels)
    monkeypatch.setattr(kernels, "signs_and_sums", None)
    half = normal(5, 2, 70, 70)
    found, total = rescale.signs_and_total(half.clone(), signed=False)

    assert found is None
    torch.testing.assert_close(total, rescale.total(half.abs()))


# Use of the kernels


@pytest.fixture
def fresh():
    fused._working_on.cache_clear()
    yield
    fused._working_on.cache_clear()


def test_kernels_are_not_used_on_a_cpu():
    assert fused.kernels_for(torch.zeros(2)) is None


@pytest.mark.slow
def test_kernels_are_used_if_their_results_equal_torchs(fresh):
    assert fused._working_on(CPU) is kernels


SIGNS = ("signs_and_sums", "signs")


@pytest.mark.parametrize(("name", "wrong_part"), [*((name, name) for name in NAMES), SIGNS])
def test_a_kernel_with_a_wrong_result_causes_a_warning_and_no_kernel_is_used(
    fresh, monkeypatch, name, wrong_part
):
    right = getattr(kernels, name)

    def wrong(*tensors):
        result = right(*tensors)
        if name != "signs_and_sums":
            return result * 1.001
        signs, sums = result
        return (signs.neg(), sums) if wrong_part == "signs" else (signs, sums * 1.001)

    monkeypatch.setattr(kernels, name, wrong)
    reported = wrong_part.removeprefix("signs_and_")
    with pytest.warns(
        UserWarning, match=f"slower: .*the kernel {reported} computes other values than torch"
    ):
        assert fused._working_on(CPU) is None


def test_without_triton_no_kernel_is_used(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "aol.ops.triton_kernels")
    monkeypatch.delattr("aol.ops.triton_kernels")
    with pytest.warns(UserWarning, match="without fused kernels, slower: .*import of triton"):
        assert fused._working_on(CPU) is None


COMPILED = """
import warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from aol.ops import triton_kernels as kernels
tile = kernels._tile_of(192) | {"SIZE": 192}
warps = {"num_warps": tile.pop("num_warps")}
MAXMIN = [kernels._maxmin, kernels._maxmin_gradient]
SIGNS = [kernels._signs_and_sums, kernels._signed_sums]
for kernel in MAXMIN + SIGNS:
    constants = {"PAIRS": kernels.PAIRS} if kernel in MAXMIN else tile
    for dtype in ["bf16", "fp32", "fp64"] if kernel in MAXMIN else ["fp32", "fp64"]:
        types = {"signs": "*i8", "count": "i32", "rows": "i32"}
        types |= dict.fromkeys(constants, "constexpr")
        names = {name: types.get(name, "*" + dtype) for name in kernel.arg_names}
        divisible = {
            (at,): [["tt.divisibility", 16]]
            for at, kind in enumerate(names.values())
            if kind != "constexpr"
        }
        source = ASTSource(kernel, names, constants, divisible)
        ptx = triton.compile(source, GPUTarget("cuda", 90, 32), warps).asm["ptx"]
        print(kernel.fn.__name__, dtype, *(f"{way}.global.v4.b32" in ptx for way in ("ld", "st")))
"""


@pytest.mark.slow
def test_kernels_compile_for_a_hopper_gpu():
    """
    They compile for every type, with the widest loads and stores in those of training. This needs
    another process, because kernels are interpreted in this one.
    """
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        cwd=PROJECT,
        env={"TRITON_INTERPRET": "0", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    of_training = [line for line in lines if " fp64 " not in line]
    assert (len(lines), len(of_training)) == (2 * 3 + 2 * 2, 2 * 2 + 2)
    assert all(line.endswith(" True True") for line in of_training), done.stdout
